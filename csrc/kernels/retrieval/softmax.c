/* Softmax attention of a pass, without projecting any key: in the scores q . (W_k x) the product q W_k is computed
 * first, because there are only B queries. With Q (B x d) the projected queries and [T; R^T] = [W_v^T; W_k^T] Q^T,
 * where W_v are the columns of W_k for the values,
 *
 *     score of a token = (S[key, b] + T[value, b]) / sqrt(d),   S = E R^T   (N x B)
 *
 * up to q . b_k, which is the same for all tokens of a sequence: b_k has no influence and its gradient is exactly zero.
 *
 * Backward: from ds_t (readouts/softmax.c), dS[key, b] and dT[value, b] are sums over tokens; then
 *
 *     dE = dS R,   dR = dS^T E,   dW_k = Q^T dR,   dW_v = Q^T dT^T,   dQ = dR W_k^T + dT^T W_v^T
 *
 * Derived in docs/mathematics/readout_softmax.md. */
#include "kernels/retrieval/softmax.h"

#include <math.h>
#include <string.h>

#include "kernels/base/transpose.h"
#include "kernels/base/vector.h"
#include "kernels/retrieval/readouts/softmax.h"
#include "runtime/threads.h"

#define TILE_COLUMNS 64

typedef struct {
    real *scores; /* L: then weights, then the gradients of scores */
    real *dy;     /* N */
} SoftmaxSequenceScratch;

static SoftmaxSequenceScratch take_scratch(const FwmModelSizes *z, Arena *arena)
{
    SoftmaxSequenceScratch w;
    w.scores = take(arena, z->length);
    w.dy = take(arena, z->n_keys);
    return w;
}

size_t softmax_scratch(const FwmModel *model)
{
    Arena arena = {0};
    take_scratch(&model->sizes, &arena);
    return arena.next;
}

/* folded_t ((N + E) x B) = key_weight Q^T, and the transpose of its embedding part. */
static void fold_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    const size_t ld_b = fwm_padded(s->batch->n), rows = z->n_keys + z->embedding;
    const size_t r0 = index * TILE_ENTRIES, r1 = fwm_min(r0 + TILE_ENTRIES, rows);
    gemm(r1 - r0, ld_b, z->d, rows_of(s->key_weight + r0 * z->ld, z->ld), s->queries_t, ld_b, 0, NULL,
         s->folded_t + r0 * ld_b, ld_b);
    const size_t e0 = r0 > z->n_keys ? r0 : z->n_keys;
    if (e0 < r1)
        transpose(r1 - e0, s->batch->n, s->folded_t + e0 * ld_b, ld_b, s->folded + e0 - z->n_keys, z->ld_e);
}

static void key_scores_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    const size_t ld_b = fwm_padded(s->batch->n), n0 = index * TILE_KEYS, count = fwm_min(TILE_KEYS, z->n_keys - n0);
    gemm(count, ld_b, z->embedding, rows_of(s->embedding + n0 * z->ld_e, z->ld_e), s->folded_t + z->n_keys * ld_b, ld_b,
         0, NULL, s->key_scores + n0 * ld_b, ld_b);
}

static void sequence_task(void *context, size_t b, int thread)
{
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    const size_t ld_b = fwm_padded(s->batch->n), ld_n = fwm_padded(z->n_keys);
    const int32_t *keys = s->batch->keys + b * z->length, *values = s->batch->values + b * z->length;
    const real scale = (real)(1 / sqrt((double)z->d));
    Arena arena = thread_scratch(s, thread);
    const SoftmaxSequenceScratch w = take_scratch(z, &arena);
    real *scores = w.scores, *dy = w.dy, *y = s->y + b * ld_n;
    for (size_t t = 0; t < z->length; t++)
        scores[t] = scale * (s->key_scores[(size_t)keys[t] * ld_b + b] + s->folded_t[(size_t)values[t] * ld_b + b]);
    softmax_forward(z->length, z->n_keys, values, scores, y);
    if (!s->batch->answer)
        return;
    s->losses[b] = loss_of_sequence(s, b, dy);
    if (s->purpose == LOSS_ONLY)
        return;
    softmax_backward(z->length, z->n_keys, values, y, dy, scores);
    real *by_key = s->dkey_scores + b * ld_n, *by_value = s->dvalue_scores + b * ld_n;
    memset(by_key, 0, ld_n * sizeof(real));
    memset(by_value, 0, ld_n * sizeof(real));
    for (size_t t = 0; t < z->length; t++) {
        by_key[keys[t]] += scale * scores[t];
        by_value[values[t]] += scale * scores[t];
    }
}

/* dR, a tile of columns. */
static void dfolded_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    const size_t e0 = index * TILE_COLUMNS, width = fwm_min(TILE_COLUMNS, z->ld_e - e0);
    gemm(s->batch->n, width, z->n_keys, rows_of(s->dkey_scores, fwm_padded(z->n_keys)), s->embedding + e0, z->ld_e, 0,
         NULL, s->dfolded + e0, z->ld_e);
}

/* dQ for a few queries, and dW_v for a few values. */
static void dqueries_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    const size_t B = s->batch->n, ld_n = fwm_padded(z->n_keys), query_tiles = fwm_tiles(B, 8);
    if (index < query_tiles) {
        const size_t b0 = index * 8, count = fwm_min(8, B - b0);
        real *dq = s->dqueries + b0 * s->table_ld;
        gemm(count, z->ld, z->embedding, rows_of(s->dfolded + b0 * z->ld_e, z->ld_e), s->key_weight + z->n_keys * z->ld,
             z->ld, 0, NULL, dq, s->table_ld);
        gemm(count, z->ld, z->n_keys, rows_of(s->dvalue_scores + b0 * ld_n, ld_n), s->key_weight, z->ld, 1, dq, dq,
             s->table_ld);
    } else {
        const size_t n0 = (index - query_tiles) * TILE_ENTRIES, count = fwm_min(TILE_ENTRIES, z->n_keys - n0);
        gemm(count, z->ld, B, transposed(s->dvalue_scores + n0, ld_n), s->queries, s->table_ld, 0, NULL,
             s->dkey_weight + n0 * z->ld, z->ld);
    }
}

void softmax_sequences(Step *s)
{
    const FwmModelSizes *z = s->sizes;
    const size_t B = s->batch->n, ld_b = fwm_padded(B), ld_n = fwm_padded(z->n_keys);
    const int threads = s->model->threads;
    memset(s->queries_t, 0, z->d * ld_b * sizeof(real));
    transpose(B, z->d, s->queries, s->table_ld, s->queries_t, ld_b);
    fwm_parallel_for(threads, fwm_tiles(z->n_keys + z->embedding, TILE_ENTRIES), fold_task, s);
    fwm_parallel_for(threads, fwm_tiles(z->n_keys, TILE_KEYS), key_scores_task, s);
    fwm_parallel_for(threads, B, sequence_task, s);
    if (s->purpose == LOSS_ONLY)
        return;
    for (size_t b = 0; b < B; b++)
        memset(s->folded + b * z->ld_e + z->embedding, 0, (z->ld_e - z->embedding) * sizeof(real));
    fwm_parallel_for(threads, fwm_tiles(z->ld_e, TILE_COLUMNS), dfolded_task, s);
    fwm_parallel_for(threads, fwm_tiles(B, 8) + fwm_tiles(z->n_keys, TILE_ENTRIES), dqueries_task, s);
    memset(s->dkey_bias, 0, z->ld * sizeof(real));
    s->weight_gradient = (TiledProduct){transposed(s->dfolded, z->ld_e), s->queries, s->table_ld, B};
    s->embedding_gradient = (TiledProduct){transposed(s->dkey_scores, ld_n), s->folded, z->ld_e, B};
}
