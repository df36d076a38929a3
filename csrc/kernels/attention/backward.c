/* Softmax attention, backward. Forward, for a row i and the keys j that it sees:
 *
 *     s_ij = scale q_i . k_j,   p_ij = exp(s_ij - lse_i),   o_i = sum_j p_ij v_j
 *
 * Saved: lse and o, or nothing; p is made again, tile by tile. With dp_ij = dout_i . v_j, softmax's Jacobian gives
 * ds_ij = p_ij (dp_ij - sum_l p_il dp_il), and the sum is dout_i . o_i =: delta_i. So
 *
 *     ds_ij = p_ij (dp_ij - delta_i)
 *     dv_j = sum_i p_ij dout_i,   dk_j = scale sum_i ds_ij q_i,   dq_i = scale sum_j ds_ij k_j
 *
 * Five products for a tile. A task is a block of tokens (their rows) against a block of keys, and adds to all three
 * gradients. In a round, key block n meets token block n + round, modulo the number of blocks: no two tasks of a round
 * add to the same numbers, and the order of additions is that of the rounds, whatever the number of threads. */
#include "kernels/attention/exp2.h"
#include "kernels/attention/softmax_attention.h"
#include "kernels/attention/tiles.h"
#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/base/arena.h"
#include "runtime/threads.h"

#define ENOUGH_TASKS 16
#define SMALLEST_BLOCK 256
#define STRIP_BYTES (768 * 1024) /* of a strip's k, v, dk and dv, in the second-level cache */
#define DELTA_TOKENS 64

/* Keys at hand, and their gradients so far. */
typedef struct {
    size_t first, count;
    real *k, *dk; /* count x ld_k */
    real *v, *dv; /* count x ld_v */
} Strip;

/* Rows at hand. What a lane that is no row holds makes its weights and gradients 0. */
typedef struct {
    size_t first, count, lanes;
    real *q, *q_t;       /* lanes x ld_k; K x lanes, times scale log2(e) */
    real *dout, *dout_t; /* lanes x ld_v; V x lanes, times scale */
    real *dq;            /* lanes x ld_k */
    real *lse2, *delta;  /* lanes: lse log2(e); delta times scale */
} RowTile;

typedef struct {
    Strip strip;
    RowTile rows;
    real *p, *ds; /* KEY_TILE x lanes */
} Scratch;

typedef struct {
    const FwmAttentionCall *a;
    const real *lse;
    real *delta;
    size_t blocks, token_block, key_block, strip; /* blocks of tokens and of keys; their sizes; keys of a strip */
    size_t round, tasks;                          /* tasks of a head in this round */
    char *scratch;
    size_t stride;
} Backward;

static size_t strip_of(const FwmAttentionCall *a)
{
    const size_t fit = STRIP_BYTES / (2 * (fwm_padded(a->K) + fwm_padded(a->V)) * sizeof(real)) / KEY_TILE * KEY_TILE;
    return fit < KEY_TILE ? KEY_TILE : fwm_min(fit, fwm_tiles(a->S, KEY_TILE) * KEY_TILE);
}

static Scratch take_scratch(const FwmAttentionCall *a, Arena *arena)
{
    const size_t ld_k = fwm_padded(a->K), ld_v = fwm_padded(a->V), strip = strip_of(a);
    Scratch s;
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

/* out (width x lanes) = factor rows^T, lanes that are no rows 0. */
static void transpose_rows(const RowTile *tile, const real *rows, size_t ld, size_t width, real factor, real *out)
{
    if (tile->lanes != tile->count)
        memset(out, 0, width * tile->lanes * sizeof(real));
    transpose(tile->count, width, rows, ld, out, tile->lanes);
    for (size_t i = 0; i < width * tile->lanes; i++)
        out[i] *= factor;
}

static void load_rows(const Backward *w, const Head *head, size_t first, size_t count, RowTile *tile)
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

static void weigh_again(size_t keys, const RowTile *rows, real *p)
{
    const size_t ld = rows->lanes;
    for (size_t j = 0; j < keys; j++)
        for (size_t i = 0; i < ld; i += FWM_LANES)
            vec_store(p + j * ld + i, vec_exp2(vec_load(p + j * ld + i) - vec_load(rows->lse2 + i)));
}

/* ds holds dp. */
static void through_softmax(size_t keys, const RowTile *rows, const real *p, real *ds)
{
    const size_t ld = rows->lanes;
    for (size_t j = 0; j < keys; j++)
        for (size_t i = 0; i < ld; i += FWM_LANES)
            vec_store(ds + j * ld + i,
                      vec_load(p + j * ld + i) * (vec_load(ds + j * ld + i) - vec_load(rows->delta + i)));
}

static void clear_unseen(const Head *head, size_t first_key, size_t keys, const RowTile *rows, real *x)
{
    for (size_t j = 0; j < keys; j++)
        memset(x + j * rows->lanes, 0, blind_lanes(head, first_key + j, rows->first, rows->lanes) * sizeof(real));
}

/* dv, dk and dq from p and ds, in a tile that the triangle cuts, leaving out what a row does not see. */
static void add_seen(const Head *head, size_t first_key, size_t keys, const Scratch *s, const Strip *t)
{
    const RowTile *rows = &s->rows;
    const size_t ld = rows->lanes, ld_k = fwm_padded(head->a->K), ld_v = fwm_padded(head->a->V);
    for (size_t j = 0; j < keys; j++) {
        const size_t blind = fwm_min(blind_lanes(head, first_key + j, rows->first, ld), rows->count);
        real *dv = t->dv + j * ld_v, *dk = t->dk + j * ld_k;
        gemm(1, ld_v, rows->count - blind, rows_of(s->p + j * ld + blind, ld), rows->dout + blind * ld_v, ld_v, 1, dv,
             dv, ld_v);
        gemm(1, ld_k, rows->count - blind, rows_of(s->ds + j * ld + blind, ld), rows->q + blind * ld_k, ld_k, 1, dk, dk,
             ld_k);
    }
    for (size_t i = 0; i < rows->count; i++) {
        const size_t sees = seen(head, rows->first + i);
        real *dq = rows->dq + i * ld_k;
        if (sees > first_key)
            gemm(1, ld_k, fwm_min(sees - first_key, keys), transposed(s->ds + i, ld), t->k, ld_k, 1, dq, dq, ld_k);
    }
}

/* The rows at hand meet a tile of keys, those of the strip from `offset` on. */
static void meet(const Head *head, size_t offset, size_t keys, const Scratch *s)
{
    const FwmAttentionCall *a = head->a;
    const RowTile *rows = &s->rows;
    const size_t ld = rows->lanes, ld_k = fwm_padded(a->K), ld_v = fwm_padded(a->V),
                 first_key = s->strip.first + offset;
    const Strip t = {first_key,
                     keys,
                     s->strip.k + offset * ld_k,
                     s->strip.dk + offset * ld_k,
                     s->strip.v + offset * ld_v,
                     s->strip.dv + offset * ld_v};
    const bool is_cut = first_key + keys > seen(head, rows->first);
    gemm(keys, ld, a->K, rows_of(t.k, ld_k), rows->q_t, ld, 0, NULL, s->p, ld);
    weigh_again(keys, rows, s->p);
    gemm(keys, ld, a->V, rows_of(t.v, ld_v), rows->dout_t, ld, 0, NULL, s->ds, ld);
    through_softmax(keys, rows, s->p, s->ds);
    if (is_cut) {
        clear_unseen(head, first_key, keys, rows, s->p);
        clear_unseen(head, first_key, keys, rows, s->ds);
        if (!all_finite(rows->count * ld_k, rows->q) || !all_finite(rows->count * ld_v, rows->dout) ||
            !all_finite(keys * ld_k, t.k)) {
            add_seen(head, first_key, keys, s, &t);
            return;
        }
    }
    gemm(keys, ld_v, rows->count, rows_of(s->p, ld), rows->dout, ld_v, 1, t.dv, t.dv, ld_v);
    gemm(keys, ld_k, rows->count, rows_of(s->ds, ld), rows->q, ld_k, 1, t.dk, t.dk, ld_k);
    gemm(rows->count, ld_k, keys, transposed(s->ds, ld), t.k, ld_k, 1, rows->dq, rows->dq, ld_k);
}

/* Rows first .. end - 1 meet the strip's keys. */
static void meet_strip(const Backward *w, const Head *head, size_t first, size_t end, Scratch *s)
{
    const FwmAttentionCall *a = head->a;
    const size_t ld_k = fwm_padded(a->K), ld_v = fwm_padded(a->V);
    Strip *strip = &s->strip;
    load_tile(head, key_index, strip->first, strip->count, a->k, a->K, strip->k, ld_k);
    load_tile(head, key_index, strip->first, strip->count, a->v, a->V, strip->v, ld_v);
    load_tile(head, key_index, strip->first, strip->count, a->dk, a->K, strip->dk, ld_k);
    load_tile(head, key_index, strip->first, strip->count, a->dv, a->V, strip->dv, ld_v);
    for (size_t row = first; row < end; row += ROW_TILE) {
        const size_t count = fwm_min(ROW_TILE, end - row), last_sees = seen(head, row + count - 1);
        if (last_sees <= strip->first)
            continue;
        const size_t keys = fwm_min(strip->count, last_sees - strip->first);
        load_rows(w, head, row, count, &s->rows);
        for (size_t offset = 0; offset < keys; offset += KEY_TILE)
            meet(head, offset, fwm_min(KEY_TILE, keys - offset), s);
        store_tile(head, row_index, row, count, s->rows.dq, ld_k, a->dq, a->K);
    }
    store_tile(head, key_index, strip->first, strip->count, strip->dk, ld_k, a->dk, a->K);
    store_tile(head, key_index, strip->first, strip->count, strip->dv, ld_v, a->dv, a->V);
}

/* Whether key block n has a token block in this round that sees it, and which. */
static bool partner(const Backward *w, size_t n, size_t *token_block)
{
    const FwmAttentionCall *a = w->a;
    const size_t key = n * w->key_block, token = (*token_block = (n + w->round) % w->blocks) * w->token_block;
    if (key >= a->S || token >= a->T)
        return false;
    return !a->causal || key < a->S - a->T + fwm_min(token + w->token_block, a->T);
}

static void block_task(void *context, size_t index, int thread)
{
    const Backward *w = context;
    const FwmAttentionCall *a = w->a;
    const Head head = head_at(a, index / w->tasks);
    size_t n = 0, token_block;
    for (size_t before = index % w->tasks; !partner(w, n, &token_block) || before-- > 0;)
        n++;
    const size_t first = token_block * w->token_block * head.group;
    const size_t end = fwm_min((token_block + 1) * w->token_block, a->T) * head.group;
    const size_t end_of_keys = fwm_min(fwm_min((n + 1) * w->key_block, a->S), seen(&head, end - 1));
    Arena arena = arena_of_thread(w->scratch, thread, w->stride);
    Scratch s = take_scratch(a, &arena);
    for (size_t key = n * w->key_block; key < end_of_keys; key += w->strip) {
        s.strip.first = key, s.strip.count = fwm_min(w->strip, end_of_keys - key);
        meet_strip(w, &head, first, end, &s);
    }
}

/* delta of some tokens, from o as the forward wrote it. */
static void delta_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Backward *w = context;
    const FwmAttentionCall *a = w->a;
    const size_t first = index * DELTA_TOKENS * a->HQ, end = fwm_min(first + DELTA_TOKENS * a->HQ, a->B * a->T * a->HQ);
    for (size_t row = first; row < end; row++)
        w->delta[row] = inner_product(a->V, (const real *)a->dout + row * a->V, (const real *)a->o + row * a->V);
}

static size_t round_up(size_t n, size_t multiple)
{
    return fwm_tiles(n, multiple) * multiple;
}

/* Blocks as large as leave tasks for many threads: the fewer, the fewer passes over rows and keys. */
static void cut_into_blocks(Backward *w)
{
    const FwmAttentionCall *a = w->a;
    const size_t most = fwm_tiles(ENOUGH_TASKS, a->B * a->H);
    w->token_block = round_up(fwm_tiles(a->T, most), SMALLEST_BLOCK);
    w->key_block = round_up(fwm_tiles(a->S, most), SMALLEST_BLOCK);
    const size_t of_tokens = fwm_tiles(a->T, w->token_block), of_keys = fwm_tiles(a->S, w->key_block);
    w->blocks = of_tokens > of_keys ? of_tokens : of_keys;
}

static size_t lines_bytes(const FwmAttentionCall *a)
{
    return round_up(a->B * a->T * a->HQ * sizeof(real), 64);
}

/* Scratch: lse and delta of all rows, then what the threads need, one behind the other. */
size_t attention_backward_scratch(const void *call, int threads)
{
    const FwmAttentionCall *a = call;
    const size_t forward = attention_forward_scratch(a, threads), backward = bytes_of_thread(a) * (size_t)threads;
    return 2 * lines_bytes(a) + (a->o || backward > forward ? backward : forward);
}

void attention_backward(const void *call, int threads, void *scratch)
{
    const FwmAttentionCall *a = call;
    real *lse = scratch, *delta = (real *)((char *)scratch + lines_bytes(a));
    Backward w = {.a = a,
                  .lse = a->o ? a->lse : lse,
                  .delta = delta,
                  .strip = strip_of(a),
                  .stride = bytes_of_thread(a),
                  .scratch = (char *)scratch + 2 * lines_bytes(a)};
    if (a->o)
        fwm_parallel_for(threads, fwm_tiles(a->B * a->T, DELTA_TOKENS), delta_task, &w);
    else
        attention_rows(a, NULL, lse, delta, threads, w.scratch);
    cut_into_blocks(&w);
    for (w.round = 0; w.round < w.blocks; w.round++) {
        size_t token_block;
        w.tasks = 0;
        for (size_t n = 0; n < w.blocks; n++)
            w.tasks += partner(&w, n, &token_block);
        if (w.tasks)
            fwm_parallel_for(threads, a->B * a->H * w.tasks, block_task, &w);
    }
}
