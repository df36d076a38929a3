/* Softmax attention, backward. Forward, for a row i and the keys j that it sees:
 *
 *     s_ij = scale q_i . k_j,   p_ij = exp(s_ij - lse_i),   o_i = sum_j p_ij v_j
 *
 * Saved: lse and o, or nothing; p is recomputed, tile by tile. With dp_ij = dout_i . v_j, softmax's Jacobian gives
 * ds_ij = p_ij (dp_ij - sum_l p_il dp_il), and the sum is dout_i . o_i =: delta_i. So
 *
 *     ds_ij = p_ij (dp_ij - delta_i)
 *     dv_j = sum_i p_ij dout_i,   dk_j = scale sum_i ds_ij q_i,   dq_i = scale sum_j ds_ij k_j
 *
 * Five products for a tile. A task is a block of tokens (their rows) against a block of keys, and adds to all three
 * gradients. In a round, key block n is paired with token block n + round, modulo the number of blocks: no two tasks of
 * a round add to the same numbers, and the order of additions is that of the rounds, whatever the number of threads.
 *
 * Derived in docs/mathematics/softmax_attention.md. */
#include <string.h>

#include "kernels/attention/softmax_attention.h"

#include "kernels/attention/exp2.h"
#include "kernels/attention/tiles.h"
#include "kernels/base/arena.h"
#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "runtime/threads.h"

#define ENOUGH_TASKS 16
#define SMALLEST_BLOCK 256
#define STRIP_BYTES (768 * 1024) /* of a strip's k, v, dk and dv, in the second-level cache */
#define DELTA_TOKENS 64

/* Keys, and what is accumulated of their gradients. */
typedef struct {
    size_t first, count;
    real *k, *dk; /* count x ld_k */
    real *v, *dv; /* count x ld_v */
} KeyStrip;

/* A tile of rows. Lanes after the last row hold numbers that make their weights and gradients 0. */
typedef struct {
    size_t first, count, lanes;
    real *q, *q_t;       /* lanes x ld_k; K x lanes, times scale log2(e) */
    real *dout, *dout_t; /* lanes x ld_v; V x lanes, times scale */
    real *dq;            /* lanes x ld_k */
    real *lse2, *delta;  /* lanes: lse log2(e); delta times scale */
} BackwardTile;

typedef struct {
    KeyStrip strip;
    BackwardTile rows;
    real *p, *ds; /* KEY_TILE x lanes */
} AttentionBackwardScratch;

typedef struct {
    const FwmAttentionCall *a;
    const real *lse;
    real *delta;
    size_t blocks, token_block, key_block, strip; /* blocks of tokens and of keys; their sizes; keys of a strip */
    size_t round, tasks;                          /* tasks of a head in this round */
    char *scratch;
    size_t stride;
} AttentionBackward;

static size_t strip_of(const FwmAttentionCall *a)
{
    const size_t fit = STRIP_BYTES / (2 * (fwm_padded(a->K) + fwm_padded(a->V)) * sizeof(real)) / KEY_TILE * KEY_TILE;
    return fit < KEY_TILE ? KEY_TILE : fwm_min(fit, fwm_tiles(a->S, KEY_TILE) * KEY_TILE);
}

static AttentionBackwardScratch take_scratch(const FwmAttentionCall *a, Arena *arena)
{
    const size_t ld_k = fwm_padded(a->K), ld_v = fwm_padded(a->V), strip = strip_of(a);
    AttentionBackwardScratch s;
    s.strip.k = take(arena, strip * ld_k);
    s.strip.dk = take(arena, strip * ld_k);
    s.strip.v = take(arena, strip * ld_v);
    s.strip.dv = take(arena, strip * ld_v);
    s.rows.q = take(arena, ROW_TILE * ld_k);
    s.rows.q_t = take(arena, ROW_TILE * a->K);
    s.rows.dout = take(arena, ROW_TILE * ld_v);
    s.rows.dout_t = take(arena, ROW_TILE * a->V);
    s.rows.dq = take(arena, ROW_TILE * ld_k);
    s.rows.lse2 = take(arena, ROW_TILE);
    s.rows.delta = take(arena, ROW_TILE);
    s.p = take(arena, KEY_TILE * ROW_TILE);
    s.ds = take(arena, KEY_TILE * ROW_TILE);
    return s;
}

static size_t bytes_of_thread(const FwmAttentionCall *a)
{
    Arena arena = {0};
    take_scratch(a, &arena);
    return arena.next;
}

/* out (width x lanes) = factor rows^T; lanes after the last row are 0. */
static void transpose_rows(const BackwardTile *tile, const real *rows, size_t ld, size_t width, real factor, real *out)
{
    if (tile->lanes != tile->count)
        memset(out, 0, width * tile->lanes * sizeof(real));
    transpose(tile->count, width, rows, ld, out, tile->lanes);
    for (size_t i = 0; i < width * tile->lanes; i++)
        out[i] *= factor;
}

static void load_rows(const AttentionBackward *w, const AttentionHead *head, size_t first, size_t count,
                      BackwardTile *tile)
{
    const FwmAttentionCall *a = head->a;
    const size_t ld_k = fwm_padded(a->K), ld_v = fwm_padded(a->V);
    const real scale = (real)a->scale;
    tile->first = first, tile->count = count, tile->lanes = fwm_padded(count);
    load_tile(head, row_index, first, count, a->q, a->K, tile->q, ld_k);
    load_tile(head, row_index, first, count, a->dout, a->V, tile->dout, ld_v);
    load_tile(head, row_index, first, count, a->dq, a->K, tile->dq, ld_k);
    transpose_rows(tile, tile->q, ld_k, a->K, (real)(a->scale * LOG2_E), tile->q_t);
    transpose_rows(tile, tile->dout, ld_v, a->V, scale, tile->dout_t);
    for (size_t i = 0; i < tile->lanes; i++) {
        const size_t row = row_index(head, first + fwm_min(i, count - 1));
        tile->lse2[i] = i < count ? (real)(w->lse[row] * LOG2_E) : INFINITY;
        tile->delta[i] = i < count ? scale * w->delta[row] : 0;
    }
}

static void recompute_weights(size_t keys, const BackwardTile *rows, real *p)
{
    const size_t ld = rows->lanes;
    for (size_t j = 0; j < keys; j++)
        for (size_t i = 0; i < ld; i += FWM_LANES)
            vec_store(p + j * ld + i, vec_exp2(vec_load(p + j * ld + i) - vec_load(rows->lse2 + i)));
}

/* ds, which holds dp at first. */
static void softmax_backward(size_t keys, const BackwardTile *rows, const real *p, real *ds)
{
    const size_t ld = rows->lanes;
    for (size_t j = 0; j < keys; j++)
        for (size_t i = 0; i < ld; i += FWM_LANES)
            vec_store(ds + j * ld + i,
                      vec_load(p + j * ld + i) * (vec_load(ds + j * ld + i) - vec_load(rows->delta + i)));
}

static void apply_causal_mask(const AttentionHead *head, size_t first_key, size_t keys, const BackwardTile *rows,
                              real *x)
{
    for (size_t j = 0; j < keys; j++)
        memset(x + j * rows->lanes, 0, masked_lanes(head, first_key + j, rows->first, rows->lanes) * sizeof(real));
}

/* dv, dk and dq from p and ds, in a tile that the causal mask cuts, where zeros must not multiply (all_finite). */
static void add_visible(const AttentionHead *head, size_t first_key, size_t keys, const AttentionBackwardScratch *s,
                        const KeyStrip *t)
{
    const BackwardTile *rows = &s->rows;
    const size_t ld = rows->lanes, ld_k = fwm_padded(head->a->K), ld_v = fwm_padded(head->a->V);
    for (size_t j = 0; j < keys; j++) {
        const size_t masked = fwm_min(masked_lanes(head, first_key + j, rows->first, ld), rows->count);
        real *dv = t->dv + j * ld_v, *dk = t->dk + j * ld_k;
        gemm(1, ld_v, rows->count - masked, rows_of(s->p + j * ld + masked, ld), rows->dout + masked * ld_v, ld_v, 1,
             dv, dv, ld_v);
        gemm(1, ld_k, rows->count - masked, rows_of(s->ds + j * ld + masked, ld), rows->q + masked * ld_k, ld_k, 1, dk,
             dk, ld_k);
    }
    for (size_t i = 0; i < rows->count; i++) {
        const size_t sees = keys_seen(head, rows->first + i);
        real *dq = rows->dq + i * ld_k;
        if (sees > first_key)
            gemm(1, ld_k, fwm_min(sees - first_key, keys), transposed(s->ds + i, ld), t->k, ld_k, 1, dq, dq, ld_k);
    }
}

/* The tile of rows against a tile of keys, those of the strip from `offset` on. */
static void tile_backward(const AttentionHead *head, size_t offset, size_t keys, const AttentionBackwardScratch *s)
{
    const FwmAttentionCall *a = head->a;
    const BackwardTile *rows = &s->rows;
    const size_t ld = rows->lanes, ld_k = fwm_padded(a->K), ld_v = fwm_padded(a->V),
                 first_key = s->strip.first + offset;
    const KeyStrip t = {first_key,
                        keys,
                        s->strip.k + offset * ld_k,
                        s->strip.dk + offset * ld_k,
                        s->strip.v + offset * ld_v,
                        s->strip.dv + offset * ld_v};
    const bool is_masked = first_key + keys > keys_seen(head, rows->first);
    gemm(keys, ld, a->K, rows_of(t.k, ld_k), rows->q_t, ld, 0, NULL, s->p, ld);
    recompute_weights(keys, rows, s->p);
    gemm(keys, ld, a->V, rows_of(t.v, ld_v), rows->dout_t, ld, 0, NULL, s->ds, ld);
    softmax_backward(keys, rows, s->p, s->ds);
    if (is_masked) {
        apply_causal_mask(head, first_key, keys, rows, s->p);
        apply_causal_mask(head, first_key, keys, rows, s->ds);
        if (!all_finite(rows->count * ld_k, rows->q) || !all_finite(rows->count * ld_v, rows->dout) ||
            !all_finite(keys * ld_k, t.k)) {
            add_visible(head, first_key, keys, s, &t);
            return;
        }
    }
    gemm(keys, ld_v, rows->count, rows_of(s->p, ld), rows->dout, ld_v, 1, t.dv, t.dv, ld_v);
    gemm(keys, ld_k, rows->count, rows_of(s->ds, ld), rows->q, ld_k, 1, t.dk, t.dk, ld_k);
    gemm(rows->count, ld_k, keys, transposed(s->ds, ld), t.k, ld_k, 1, rows->dq, rows->dq, ld_k);
}

/* Rows first .. end - 1 against the strip's keys. */
static void strip_backward(const AttentionBackward *w, const AttentionHead *head, size_t first, size_t end,
                           AttentionBackwardScratch *s)
{
    const FwmAttentionCall *a = head->a;
    const size_t ld_k = fwm_padded(a->K), ld_v = fwm_padded(a->V);
    KeyStrip *strip = &s->strip;
    load_tile(head, key_index, strip->first, strip->count, a->k, a->K, strip->k, ld_k);
    load_tile(head, key_index, strip->first, strip->count, a->v, a->V, strip->v, ld_v);
    load_tile(head, key_index, strip->first, strip->count, a->dk, a->K, strip->dk, ld_k);
    load_tile(head, key_index, strip->first, strip->count, a->dv, a->V, strip->dv, ld_v);
    for (size_t row = first; row < end; row += ROW_TILE) {
        const size_t count = fwm_min(ROW_TILE, end - row), last_sees = keys_seen(head, row + count - 1);
        if (last_sees <= strip->first)
            continue;
        const size_t keys = fwm_min(strip->count, last_sees - strip->first);
        load_rows(w, head, row, count, &s->rows);
        for (size_t offset = 0; offset < keys; offset += KEY_TILE)
            tile_backward(head, offset, fwm_min(KEY_TILE, keys - offset), s);
        store_tile(head, row_index, row, count, s->rows.dq, ld_k, a->dq, a->K);
    }
    store_tile(head, key_index, strip->first, strip->count, strip->dk, ld_k, a->dk, a->K);
    store_tile(head, key_index, strip->first, strip->count, strip->dv, ld_v, a->dv, a->V);
}

/* Whether key block n has a token block in this round that sees it, and which. */
static bool find_token_block(const AttentionBackward *w, size_t n, size_t *token_block)
{
    const FwmAttentionCall *a = w->a;
    const size_t key = n * w->key_block, token = (*token_block = (n + w->round) % w->blocks) * w->token_block;
    if (key >= a->S || token >= a->T)
        return false;
    return !a->causal || key < a->S - a->T + fwm_min(token + w->token_block, a->T);
}

static void block_task(void *context, size_t index, int thread)
{
    const AttentionBackward *w = context;
    const FwmAttentionCall *a = w->a;
    const AttentionHead head = head_at(a, index / w->tasks);
    size_t n = 0, token_block;
    for (size_t before = index % w->tasks; !find_token_block(w, n, &token_block) || before-- > 0;)
        n++;
    const size_t first = token_block * w->token_block * head.group;
    const size_t end = fwm_min((token_block + 1) * w->token_block, a->T) * head.group;
    const size_t end_of_keys = fwm_min(fwm_min((n + 1) * w->key_block, a->S), keys_seen(&head, end - 1));
    Arena arena = arena_of_thread(w->scratch, thread, w->stride);
    AttentionBackwardScratch s = take_scratch(a, &arena);
    for (size_t key = n * w->key_block; key < end_of_keys; key += w->strip) {
        s.strip.first = key, s.strip.count = fwm_min(w->strip, end_of_keys - key);
        strip_backward(w, &head, first, end, &s);
    }
}

/* delta of some tokens, from o as the forward wrote it. */
static void delta_task(void *context, size_t index, int thread)
{
    (void)thread;
    const AttentionBackward *w = context;
    const FwmAttentionCall *a = w->a;
    const size_t first = index * DELTA_TOKENS * a->HQ, end = fwm_min(first + DELTA_TOKENS * a->HQ, a->B * a->T * a->HQ);
    for (size_t row = first; row < end; row++)
        w->delta[row] = inner_product(a->V, (const real *)a->dout + row * a->V, (const real *)a->o + row * a->V);
}

static size_t round_up(size_t n, size_t multiple)
{
    return fwm_tiles(n, multiple) * multiple;
}

/* Blocks as large as possible with tasks for many threads: the fewer, the fewer passes over rows and keys. */
static void choose_blocks(AttentionBackward *w)
{
    const FwmAttentionCall *a = w->a;
    const size_t most = fwm_tiles(ENOUGH_TASKS, a->B * a->H);
    w->token_block = round_up(fwm_tiles(a->T, most), SMALLEST_BLOCK);
    w->key_block = round_up(fwm_tiles(a->S, most), SMALLEST_BLOCK);
    const size_t of_tokens = fwm_tiles(a->T, w->token_block), of_keys = fwm_tiles(a->S, w->key_block);
    w->blocks = of_tokens > of_keys ? of_tokens : of_keys;
}

static size_t bytes_of_rows(const FwmAttentionCall *a)
{
    return round_up(a->B * a->T * a->HQ * sizeof(real), 64);
}

/* Scratch: lse and delta of all rows, then that of each thread. */
size_t attention_backward_scratch(const void *call, int threads)
{
    const FwmAttentionCall *a = call;
    const size_t forward = attention_forward_scratch(a, threads), backward = bytes_of_thread(a) * (size_t)threads;
    return 2 * bytes_of_rows(a) + (a->o || backward > forward ? backward : forward);
}

void attention_backward(const void *call, int threads, void *scratch)
{
    const FwmAttentionCall *a = call;
    memset(a->dq, 0, a->B * a->T * a->HQ * a->K * sizeof(real));
    memset(a->dk, 0, a->B * a->S * a->H * a->K * sizeof(real));
    memset(a->dv, 0, a->B * a->S * a->H * a->V * sizeof(real));
    real *lse = scratch, *delta = (real *)((char *)scratch + bytes_of_rows(a));
    AttentionBackward w = {.a = a,
                           .lse = a->o ? a->lse : lse,
                           .delta = delta,
                           .strip = strip_of(a),
                           .stride = bytes_of_thread(a),
                           .scratch = (char *)scratch + 2 * bytes_of_rows(a)};
    if (a->o)
        fwm_parallel_for(threads, fwm_tiles(a->B * a->T, DELTA_TOKENS), delta_task, &w);
    else
        attention_rows(a, NULL, lse, delta, threads, w.scratch);
    choose_blocks(&w);
    for (w.round = 0; w.round < w.blocks; w.round++) {
        size_t token_block;
        w.tasks = 0;
        for (size_t n = 0; n < w.blocks; n++)
            w.tasks += find_token_block(&w, n, &token_block);
        if (w.tasks)
            fwm_parallel_for(threads, a->B * a->H * w.tasks, block_task, &w);
    }
}
