/* The sequences of a pass, for read-outs of mapped keys: gather the tokens' pre-activations, map them, read out, and do
 * the whole backward, one sequence at a time in one thread's cache.
 *
 * Backward: a token's pre-activation is by_key[key] + by_value[value], so its gradient is scattered to both rows, in
 * tables of its block of sequences; beta = logistic(logit) gives dlogit = dbeta beta (1 - beta).
 *
 * Derived in docs/mathematics/retrieval.md. */
#include "kernels/retrieval/mapped.h"

#include <string.h>

#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"
#include "kernels/maps/omega.h"
#include "runtime/threads.h"

typedef struct {
    real *pre;                 /* L x ld */
    real *phi;                 /* L x ld_features */
    real *beta;                /* L */
    real *query;               /* ld_features */
    real *dquery;              /* ld_features */
    real *dy;                  /* N */
    real *dphi;                /* TILE x ld_features */
    real *dpre;                /* TILE x ld */
    real *dbeta;               /* TILE */
    void *of_map, *of_readout; /* their scratch */
} MappedScratch;

static MappedScratch take_scratch(const Step *s, Arena *arena)
{
    const size_t L = s->sizes->length, N = s->sizes->n_keys, ld = s->map_shape.ld,
                 ld_features = s->map_shape.ld_features;
    MappedScratch w;
    w.pre = take(arena, L * ld);
    w.phi = take(arena, L * ld_features);
    w.beta = take(arena, L);
    w.query = take(arena, ld_features);
    w.dquery = take(arena, ld_features);
    w.dy = take(arena, N);
    w.dphi = take(arena, FWM_TILE * ld_features);
    w.dpre = take(arena, FWM_TILE * ld);
    w.dbeta = take(arena, FWM_TILE);
    w.of_map = take_bytes(arena, s->map->scratch ? s->map->scratch(&s->map_shape) : 0);
    w.of_readout = take_bytes(arena, s->readout->scratch(L, N, ld_features, 0));
    return w;
}

size_t mapped_scratch(const FwmModel *model)
{
    const Step s = step_of_model((FwmModel *)model);
    Arena arena = {0};
    take_scratch(&s, &arena);
    return arena.next;
}

/* pre (L x ld), phi (L x ld_features) and beta (L) of a sequence. */
static void map_tokens(const Step *s, const MappedScratch *w, const int32_t *keys, const int32_t *values)
{
    const size_t L = s->sizes->length, ld = s->map_shape.ld;
    for (size_t t = 0; t < L; t++) {
        const real *key = s->by_key + (size_t)keys[t] * ld, *value = s->by_value + (size_t)values[t] * ld;
        real *row = w->pre + t * ld;
        for (size_t i = 0; i < ld; i += FWM_LANES)
            vec_store(row + i, vec_load(key + i) + vec_load(value + i));
    }
    s->map->forward(&s->map_shape, L, w->pre, w->phi, w->of_map);
    if (!s->readout->info.uses_beta)
        return;
    for (size_t t = 0; t < L; t++)
        w->beta[t] = s->logit_by_key[keys[t]] + s->beta_weight[values[t]];
#pragma omp simd
    for (size_t t = 0; t < L; t++)
        w->beta[t] = logistic(w->beta[t]);
}

/* The gradient table of a block: N rows by key, then N rows by value. */
static real *table_of_block(const Step *s, size_t block)
{
    return s->block_tables + block * 2 * s->sizes->n_keys * s->table_ld;
}

/* The same for the logits of beta: padded(N) numbers by key, then by value. */
static real *logits_of_block(const Step *s, size_t block)
{
    return s->block_logits + block * 2 * fwm_padded(s->sizes->n_keys);
}

static void sequence_backward(const Step *s, const MappedScratch *w, const ReadoutSequence *sequence,
                              const int32_t *keys, size_t b, size_t block)
{
    real *dby_key = table_of_block(s, block), *dby_value = dby_key + sequence->n_values * s->table_ld;
    real *dlogit_by_key = logits_of_block(s, block), *dlogit_by_value = dlogit_by_key + fwm_padded(sequence->n_values);
    const MapShape *shape = &s->map_shape;
    const size_t ld = shape->ld;
    const size_t n_tiles =
        s->readout->backward_begin(sequence, w->of_readout, s->y + b * fwm_padded(sequence->n_values), w->dy);
    for (size_t tile = 0; tile < n_tiles; tile++) {
        const TokenRange range = s->readout->backward_tile(sequence, w->of_readout, tile, w->dphi, w->dbeta);
        s->map->backward(shape, range.count, w->dphi, w->pre + range.start * ld,
                         w->phi + range.start * shape->ld_features, w->dpre, w->of_map);
        for (size_t t = 0; t < range.count; t++) {
            const size_t token = range.start + t;
            add(ld, w->dpre + t * ld, dby_key + (size_t)keys[token] * ld);
            add(ld, w->dpre + t * ld, dby_value + (size_t)sequence->values[token] * ld);
            if (!sequence->beta)
                continue;
            const real dlogit = w->dbeta[t] * w->beta[token] * (1 - w->beta[token]);
            dlogit_by_key[keys[token]] += dlogit;
            dlogit_by_value[sequence->values[token]] += dlogit;
        }
    }
    s->readout->backward_end(sequence, w->of_readout, w->dquery);
    real *dquery_row = s->dqueries + b * ld;
    s->map->backward(shape, 1, w->dquery, s->queries + b * ld, w->query, dquery_row, w->of_map);
    if (shape->extension)
        omega_backward(shape, s->omega_t, 1, dquery_row);
}

static size_t n_blocks(const Step *s)
{
    return fwm_min(SEQUENCE_BLOCKS, s->batch->n);
}

static void block_task(void *context, size_t block, int thread)
{
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    Arena arena = thread_scratch(s, thread);
    const MappedScratch w = take_scratch(s, &arena);
    const size_t n = s->batch->n, blocks = n_blocks(s);
    if (s->purpose != LOSS_ONLY) {
        memset(table_of_block(s, block), 0, 2 * z->n_keys * s->table_ld * sizeof(real));
        memset(logits_of_block(s, block), 0, 2 * fwm_padded(z->n_keys) * sizeof(real));
    }
    for (size_t b = block * n / blocks; b < (block + 1) * n / blocks; b++) {
        const int32_t *keys = s->batch->keys + b * z->length;
        const ReadoutSequence sequence = {
            .length = z->length,
            .n_values = z->n_keys,
            .features = s->map_shape.features,
            .ld = s->map_shape.ld_features,
            .keys = w.phi,
            .values = s->batch->values + b * z->length,
            .beta = s->readout->info.uses_beta ? w.beta : NULL,
            .query = w.query,
            .as_published = true,
        };
        real *y = s->y + b * fwm_padded(z->n_keys);
        map_tokens(s, &w, keys, sequence.values);
        s->map->forward(&s->map_shape, 1, s->queries + b * s->table_ld, w.query, w.of_map);
        s->readout->forward(&sequence, w.of_readout, y);
        if (s->batch->answer)
            s->losses[b] = loss_of_sequence(s, b, w.dy);
        if (s->purpose != LOSS_ONLY)
            sequence_backward(s, &w, &sequence, keys, b, block);
    }
}

/* For a tile of keys and values: accumulates the blocks' tables in order into that of block 0, turns u's gradients into
 * x's (dx += Omega du), and copies the rows by value into the gradients of the weights. */
static void reduce_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    const size_t n0 = index * TILE_KEYS, count = fwm_min(TILE_KEYS, z->n_keys - n0), ld = s->table_ld;
    const size_t ld_n = fwm_padded(z->n_keys);
    real *by_key = table_of_block(s, 0) + n0 * ld, *by_value = by_key + z->n_keys * ld;
    for (size_t block = 1; block < n_blocks(s); block++) {
        const real *other = table_of_block(s, block) + n0 * ld;
        add(count * ld, other, by_key);
        add(count * ld, other + z->n_keys * ld, by_value);
    }
    if (s->map_shape.extension) {
        omega_backward(&s->map_shape, s->omega_t, count, by_key);
        omega_backward(&s->map_shape, s->omega_t, count, by_value);
    }
    for (size_t block = 1; block < n_blocks(s) && z->with_beta; block++)
        for (size_t n = n0; n < n0 + count; n++) {
            logits_of_block(s, 0)[n] += logits_of_block(s, block)[n];
            logits_of_block(s, 0)[ld_n + n] += logits_of_block(s, block)[ld_n + n];
        }
    if (z->with_beta)
        memcpy(s->dbeta_weight + n0, logits_of_block(s, 0) + ld_n + n0, count * sizeof(real));
    for (size_t n = 0; n < count; n++)
        memcpy(s->dkey_weight + (n0 + n) * z->ld, by_value + n * ld, z->ld * sizeof(real));
}

void mapped_sequences(Step *s)
{
    const FwmModelSizes *z = s->sizes;
    const bool flushed = fwm_loops_flush(s->readout->flushes_subnormals);
    fwm_parallel_for(s->model->threads, n_blocks(s), block_task, s);
    if (s->purpose != LOSS_ONLY)
        fwm_parallel_for(s->model->threads, fwm_tiles(z->n_keys, TILE_KEYS), reduce_task, s);
    fwm_loops_flush(flushed);
    if (s->purpose == LOSS_ONLY)
        return;
    const real *dby_key = table_of_block(s, 0);
    memset(s->dkey_bias, 0, z->ld * sizeof(real));
    for (size_t n = 0; n < z->n_keys; n++)
        add(z->ld, dby_key + n * s->table_ld, s->dkey_bias);
    *s->dbeta_bias = 0;
    for (size_t n = 0; n < z->n_keys && z->with_beta; n++)
        *s->dbeta_bias += logits_of_block(s, 0)[n];
    s->weight_gradient = (TiledProduct){transposed(s->embedding, z->ld_e), dby_key, s->table_ld, z->n_keys};
    s->embedding_gradient = (TiledProduct){rows_of(dby_key, s->table_ld), s->key_weight_t, z->ld_e, z->d};
}
