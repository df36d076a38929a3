/* Softmax attention, forward, for a row i of queries and the keys j that it sees:
 *
 *     s_ij = scale q_i . k_j,   lse_i = log sum_j exp s_ij,   o_i = sum_j exp(s_ij - lse_i) v_j
 *
 * tile by tile of keys, with a reference m_i and the sums so far, both to the base of 2 (s2 = s log2 e):
 *
 *     p_ij = 2^(s2_ij - m_i),   l_i += sum_j p_ij,   o_i += sum_j p_ij v_j;
 *     in the end   o_i /= l_i,   lse_i = m_i ln 2 + log l_i
 *
 * m_i is a running maximum of s2_ij that may lag behind: only where a score exceeds it by more than HEADROOM does it
 * move to the maximum, and l_i and o_i are multiplied by 2^(old - new). (Milakov, Gimelshein 2018; Dao et al. 2022;
 * Vaswani et al. 2017.)
 *
 * Derived in docs/mathematics/softmax_attention.md. */
#include "kernels/attention/softmax_attention.h"

#include "kernels/attention/tiles.h"
#include "kernels/attention/weights.h"
#include "kernels/base/arena.h"
#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "runtime/threads.h"

#define HEADROOM 8    /* weights stay below 2^8 */
#define MOST_TILES 16 /* of rows that share a tile of keys: the more, the less often keys are read from memory */
#define BLOCK_BYTES (1024 * 1024) /* of their q_t and o_t, in the second-level cache */
#define ENOUGH_TASKS 32

/* A tile of rows, and what it has accumulated. */
typedef struct {
    size_t first, count, lanes; /* rows; lanes: count, padded */
    real *q_t;                  /* K x lanes: scale log2(e) q */
    real *o_t;                  /* V x lanes */
    real *reference, *total;    /* m, l: lanes */
} ForwardTile;

typedef struct {
    ForwardTile tiles[MOST_TILES];
    real *rows;    /* ROW_TILE x max(K, V): gathered, or to be scattered */
    real *k, *v;   /* KEY_TILE x K, KEY_TILE x V */
    real *weights; /* KEY_TILE x lanes */
} AttentionForwardScratch;

typedef struct {
    const FwmAttentionCall *a;
    real *o, *lse, *delta;
    size_t block, blocks, tasks; /* rows of a block; blocks and tasks of a key head */
    char *scratch;
    size_t stride;
} AttentionForward;

/* Tiles of a block: as many as fit the cache and leave blocks for many threads. */
static size_t tiles_of_block(const FwmAttentionCall *a)
{
    const size_t all = fwm_tiles(a->T * (a->HQ / a->H), ROW_TILE);
    size_t tiles = fwm_min(MOST_TILES, BLOCK_BYTES / (ROW_TILE * (a->K + a->V) * sizeof(real)));
    while (tiles > 1 && a->B * a->H * fwm_tiles(all, tiles) < ENOUGH_TASKS)
        tiles /= 2;
    return tiles > 1 ? tiles : 1;
}

static AttentionForwardScratch take_scratch(const FwmAttentionCall *a, Arena *arena)
{
    const size_t n_tiles = tiles_of_block(a);
    AttentionForwardScratch s;
    for (size_t i = 0; i < n_tiles; i++) {
        ForwardTile *tile = &s.tiles[i];
        tile->q_t = take(arena, ROW_TILE * a->K);
        tile->o_t = take(arena, ROW_TILE * a->V);
        tile->reference = take(arena, ROW_TILE);
        tile->total = take(arena, ROW_TILE);
    }
    s.rows = take(arena, ROW_TILE * (a->K > a->V ? a->K : a->V));
    s.k = take(arena, KEY_TILE * a->K);
    s.v = take(arena, KEY_TILE * a->V);
    s.weights = take(arena, KEY_TILE * ROW_TILE);
    return s;
}

static size_t bytes_of_thread(const FwmAttentionCall *a)
{
    Arena arena = {0};
    take_scratch(a, &arena);
    return arena.next;
}

static void begin_rows(const AttentionHead *head, const AttentionForwardScratch *s, size_t first, size_t count,
                       ForwardTile *tile)
{
    const FwmAttentionCall *a = head->a;
    const size_t lanes = fwm_padded(count);
    const real scale = (real)(a->scale * LOG2_E);
    tile->first = first, tile->count = count, tile->lanes = lanes;
    load_tile(head, row_index, first, count, a->q, a->K, s->rows, a->K);
    for (size_t i = 0; i < count * a->K; i++)
        s->rows[i] *= scale;
    if (lanes != count)
        memset(tile->q_t, 0, a->K * lanes * sizeof(real));
    transpose(count, a->K, s->rows, a->K, tile->q_t, lanes);
    memset(tile->o_t, 0, a->V * lanes * sizeof(real));
    for (size_t i = 0; i < lanes; i++) {
        tile->reference[i] = LOWEST;
        tile->total[i] = 0;
    }
}

/* The tile's scores become weights; where a reference moves, what is accumulated is rescaled. */
static void weigh_scores(const ForwardTile *tile, size_t keys, size_t V, real *scores)
{
    const size_t ld = tile->lanes;
    for (size_t i = 0; i < ld; i += FWM_LANES) {
        const vec before = vec_load(tile->reference + i), largest = largest_scores(keys, ld, scores + i);
        const vec reference = vec_select(largest > before + HEADROOM, largest, before);
        vec total = vec_load(tile->total + i);
        if (vec_sum(reference - before) != 0) {
            const vec factor = vec_exp2(before - reference);
            total *= factor;
            for (size_t c = 0; c < V; c++)
                vec_store(tile->o_t + c * ld + i, vec_load(tile->o_t + c * ld + i) * factor);
            vec_store(tile->reference + i, reference);
        }
        vec_store(tile->total + i, total + weigh(keys, ld, reference, scores + i));
    }
}

/* o += weights v, in a tile that the causal mask cuts, where zero weights must not multiply (all_finite). */
static void add_visible_values(const AttentionHead *head, const ForwardTile *tile, size_t first_key, size_t keys,
                               const AttentionForwardScratch *s)
{
    const size_t ld = tile->lanes, V = head->a->V;
    for (size_t j = 0; j < keys; j++)
        for (size_t c = 0; c < V; c++)
            for (size_t i = masked_lanes(head, first_key + j, tile->first, ld); i < ld; i++)
                tile->o_t[c * ld + i] += s->weights[j * ld + i] * s->v[j * V + c];
}

/* The rows of a tile attend to the tile of keys in s->k and s->v. */
static void attend_tile(const AttentionHead *head, const ForwardTile *tile, size_t first_key, size_t keys,
                        const AttentionForwardScratch *s)
{
    const size_t ld = tile->lanes, K = head->a->K, V = head->a->V;
    const bool is_masked = first_key + keys > keys_seen(head, tile->first);
    gemm(keys, ld, K, rows_of(s->k, K), tile->q_t, ld, 0, NULL, s->weights, ld);
    for (size_t j = 0; is_masked && j < keys; j++)
        for (size_t i = 0, masked = masked_lanes(head, first_key + j, tile->first, ld); i < masked; i++)
            s->weights[j * ld + i] = -INFINITY;
    weigh_scores(tile, keys, V, s->weights);
    if (is_masked && !all_finite(keys * V, s->v))
        add_visible_values(head, tile, first_key, keys, s);
    else
        gemm(V, ld, keys, transposed(s->v, V), s->weights, ld, 1, tile->o_t, tile->o_t, ld);
}

static void end_rows(const AttentionForward *f, const AttentionHead *head, const AttentionForwardScratch *s,
                     ForwardTile *tile)
{
    const size_t V = head->a->V, ld = tile->lanes;
    const bool sees = keys_seen(head, tile->first) > 0; /* without keys o is 0 and lse -inf */
    real inverse[ROW_TILE];
    for (size_t i = 0; i < ld; i++)
        inverse[i] = sees ? 1 / tile->total[i] : 0;
    for (size_t c = 0; c < V; c++)
        for (size_t i = 0; i < ld; i++)
            tile->o_t[c * ld + i] *= inverse[i];
    transpose(V, tile->count, tile->o_t, ld, s->rows, V);
    if (f->o)
        store_tile(head, row_index, tile->first, tile->count, s->rows, V, f->o, V);
    for (size_t i = 0; i < tile->count; i++) {
        const size_t row = row_index(head, tile->first + i);
        if (f->lse)
            f->lse[row] = (real)(tile->reference[i] * LN_2 + log(tile->total[i]));
        if (f->delta)
            f->delta[row] = inner_product(V, (const real *)head->a->dout + row * V, s->rows + i * V);
    }
}

static void attend_block(const AttentionForward *f, const AttentionHead *head, size_t block, AttentionForwardScratch *s)
{
    const FwmAttentionCall *a = head->a;
    const size_t first = block * f->block, end = fwm_min(first + f->block, a->T * head->group);
    const size_t n_tiles = fwm_tiles(end - first, ROW_TILE), n_keys = keys_seen(head, end - 1);
    for (size_t i = 0; i < n_tiles; i++)
        begin_rows(head, s, first + i * ROW_TILE, fwm_min(ROW_TILE, end - first - i * ROW_TILE), &s->tiles[i]);
    for (size_t key = 0; key < n_keys; key += KEY_TILE) {
        const size_t keys = fwm_min(KEY_TILE, n_keys - key);
        load_tile(head, key_index, key, keys, a->k, a->K, s->k, a->K);
        load_tile(head, key_index, key, keys, a->v, a->V, s->v, a->V);
        for (size_t i = 0; i < n_tiles; i++) {
            const size_t last_sees = keys_seen(head, s->tiles[i].first + s->tiles[i].count - 1);
            if (last_sees > key)
                attend_tile(head, &s->tiles[i], key, fwm_min(keys, last_sees - key), s);
        }
    }
    for (size_t i = 0; i < n_tiles; i++)
        end_rows(f, head, s, &s->tiles[i]);
}

/* If causal, blocks i and n - 1 - i together are a task, so that all tasks of a head are of about the same size. */
static void block_task(void *context, size_t index, int thread)
{
    const AttentionForward *f = context;
    const AttentionHead head = head_at(f->a, index / f->tasks);
    const size_t block = index % f->tasks, mirror = f->blocks - 1 - block;
    Arena arena = arena_of_thread(f->scratch, thread, f->stride);
    AttentionForwardScratch s = take_scratch(f->a, &arena);
    attend_block(f, &head, block, &s);
    if (f->a->causal && mirror != block)
        attend_block(f, &head, mirror, &s);
}

void attention_rows(const FwmAttentionCall *a, real *o, real *lse, real *delta, int threads, void *scratch)
{
    if (is_decoding(a)) {
        decode_rows(a, o, lse, delta, threads, scratch);
        return;
    }
    AttentionForward f = {.a = a,
                          .o = o,
                          .lse = lse,
                          .delta = delta,
                          .block = tiles_of_block(a) * ROW_TILE,
                          .scratch = scratch,
                          .stride = bytes_of_thread(a)};
    f.blocks = fwm_tiles(a->T * (a->HQ / a->H), f.block);
    f.tasks = a->causal ? (f.blocks + 1) / 2 : f.blocks;
    fwm_parallel_for(threads, a->B * a->H * f.tasks, block_task, &f);
}

size_t attention_forward_scratch(const void *call, int threads)
{
    const FwmAttentionCall *a = call;
    return is_decoding(a) ? decode_scratch(a, threads) : bytes_of_thread(a) * (size_t)threads;
}

void attention_forward(const void *call, int threads, void *scratch)
{
    const FwmAttentionCall *a = call;
    attention_rows(a, a->o, a->lse, NULL, threads, scratch);
}
