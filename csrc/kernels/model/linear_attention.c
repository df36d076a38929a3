/* The sequences of a pass, for rules that write features of keys into a memory: gather the tokens' pre-activations, map
 * them, write and read out, and go all the way back, one sequence at a time in one thread's cache.
 *
 * Backward: a token's pre-activation is by_key[key] + by_value[value], so its gradient is added to both rows, in tables
 * that each block of sequences has for itself; beta = logistic(logit) gives dlogit = dbeta beta (1 - beta). */
#include <string.h>

#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"
#include "kernels/model/step.h"
#include "runtime/threads.h"

typedef struct {
    real *pre;    /* L x ld */
    real *phi;    /* L x ld_features */
    real *beta;   /* L */
    real *query;  /* ld_features */
    real *dquery; /* ld_features */
    real *dy;     /* N */
    real *dphi;   /* TILE x ld_features */
    real *dpre;   /* TILE x ld */
    real *dbeta;  /* TILE */
    real *map_scratch, *rule_workspace;
} Scratch;

static Scratch divide(const FwmModelSizes *z, const MapShape *shape, const FeatureMap *map, real *numbers)
{
    Scratch w;
    w.pre = numbers;
    w.phi = w.pre + z->length * shape->ld;
    w.beta = w.phi + z->length * shape->ld_features;
    w.query = w.beta + fwm_padded(z->length);
    w.dquery = w.query + shape->ld_features;
    w.dy = w.dquery + shape->ld_features;
    w.dphi = w.dy + fwm_padded(z->n_keys);
    w.dpre = w.dphi + FWM_TILE * shape->ld_features;
    w.dbeta = w.dpre + FWM_TILE * shape->ld;
    w.map_scratch = w.dbeta + FWM_TILE;
    w.rule_workspace = w.map_scratch + fwm_padded(map->scratch ? map->scratch(shape) : 0);
    return w;
}

size_t linear_attention_scratch(const FwmModel *model)
{
    const FwmModelSizes *z = &model->sizes;
    const FeatureMap *map = feature_maps[z->map];
    const MapShape shape = map_shape(map, z->d, z->argument);
    return (z->length + FWM_TILE) * (shape.ld + shape.ld_features) + fwm_padded(z->length) + 2 * shape.ld_features +
           fwm_padded(z->n_keys) + FWM_TILE + fwm_padded(map->scratch ? map->scratch(&shape) : 0) +
           readouts[z->rule]->workspace(z->length, z->n_keys, shape.ld_features, 1);
}

/* pre (L x ld), phi (L x ld_features) and beta (L) of sequence b. */
static void map_tokens(const Step *s, const Scratch *w, const int32_t *keys, const int32_t *values)
{
    const size_t L = s->sizes->length, ld = s->map_shape.ld;
    for (size_t t = 0; t < L; t++) {
        const real *key = s->by_key + (size_t)keys[t] * ld, *value = s->by_value + (size_t)values[t] * ld;
        real *row = w->pre + t * ld;
        for (size_t i = 0; i < ld; i += FWM_LANES)
            vec_store(row + i, vec_load(key + i) + vec_load(value + i));
    }
    s->map->forward(&s->map_shape, L, w->pre, w->phi, w->map_scratch);
    if (!s->rule->info.uses_beta)
        return;
    for (size_t t = 0; t < L; t++)
        w->beta[t] = s->logit_by_key[keys[t]] + s->beta_weight[values[t]];
#pragma omp simd
    for (size_t t = 0; t < L; t++)
        w->beta[t] = logistic(w->beta[t]);
}

/* The gradient tables of a block: by key, and N rows behind it by value. */
static real *table_of(const Step *s, size_t block)
{
    return s->block_tables + block * 2 * s->sizes->n_keys * s->table_ld;
}

/* The same for the logits of beta. */
static real *logits_of(const Step *s, size_t block)
{
    return s->block_logits + block * 2 * fwm_padded(s->sizes->n_keys);
}

static void sequence_backward(const Step *s, const Scratch *w, const Sequence *sequence, const int32_t *keys, size_t b,
                              size_t block)
{
    real *dby_key = table_of(s, block), *dby_value = dby_key + sequence->n_values * s->table_ld;
    real *dlogit_by_key = logits_of(s, block), *dlogit_by_value = dlogit_by_key + fwm_padded(sequence->n_values);
    const MapShape *shape = &s->map_shape;
    const size_t ld = shape->ld;
    const size_t n_tiles =
        s->rule->backward_begin(sequence, w->rule_workspace, s->y + b * fwm_padded(sequence->n_values), w->dy);
    for (size_t tile = 0; tile < n_tiles; tile++) {
        const TokenRange range = s->rule->backward_tile(sequence, w->rule_workspace, tile, w->dphi, w->dbeta);
        s->map->backward(shape, range.count, w->dphi, w->pre + range.start * ld,
                         w->phi + range.start * shape->ld_features, w->dpre, w->map_scratch);
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
    s->rule->backward_end(sequence, w->rule_workspace, w->dquery);
    real *dquery_row = s->dqueries + b * ld;
    s->map->backward(shape, 1, w->dquery, s->queries + b * ld, w->query, dquery_row, w->map_scratch);
    if (shape->extension)
        contract_rows(shape, s->omega_t, 1, dquery_row);
}

static size_t n_blocks(const Step *s)
{
    return fwm_min(SEQUENCE_BLOCKS, s->batch->n);
}

static void block_task(void *context, size_t block, int thread)
{
    const Step *s = context;
    const FwmSubnormals before = begin_features(s);
    const FwmModelSizes *z = s->sizes;
    const Scratch w = divide(z, &s->map_shape, s->map, thread_scratch(s, thread));
    const size_t n = s->batch->n, blocks = n_blocks(s);
    if (s->purpose != LOSS_ONLY) {
        memset(table_of(s, block), 0, 2 * z->n_keys * s->table_ld * sizeof(real));
        memset(logits_of(s, block), 0, 2 * fwm_padded(z->n_keys) * sizeof(real));
    }
    for (size_t b = block * n / blocks; b < (block + 1) * n / blocks; b++) {
        const int32_t *keys = s->batch->keys + b * z->length;
        const Sequence sequence = {
            .length = z->length,
            .n_values = z->n_keys,
            .features = s->map_shape.features,
            .ld = s->map_shape.ld_features,
            .keys = w.phi,
            .values = s->batch->values + b * z->length,
            .beta = s->rule->info.uses_beta ? w.beta : NULL,
            .query = w.query,
            .as_published = true,
        };
        real *y = s->y + b * fwm_padded(z->n_keys);
        map_tokens(s, &w, keys, sequence.values);
        s->map->forward(&s->map_shape, 1, s->queries + b * s->table_ld, w.query, w.map_scratch);
        s->rule->forward(&sequence, w.rule_workspace, y);
        if (s->batch->answer)
            s->losses[b] = loss_of_sequence(s, b, w.dy);
        if (s->purpose != LOSS_ONLY)
            sequence_backward(s, &w, &sequence, keys, b, block);
    }
    fwm_restore_subnormals(before);
}

/* Adds the blocks' tables in order into that of block 0, brings u's gradients home to x, and takes the values' rows to
 * their place among the gradients of the weights. */
static void reduce_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Step *s = context;
    const FwmSubnormals before = begin_features(s);
    const FwmModelSizes *z = s->sizes;
    const size_t n0 = index * KEYS_IN_TILE, count = fwm_min(KEYS_IN_TILE, z->n_keys - n0), ld = s->table_ld;
    const size_t ld_n = fwm_padded(z->n_keys);
    real *by_key = table_of(s, 0) + n0 * ld, *by_value = by_key + z->n_keys * ld;
    for (size_t block = 1; block < n_blocks(s); block++) {
        const real *other = table_of(s, block) + n0 * ld;
        add(count * ld, other, by_key);
        add(count * ld, other + z->n_keys * ld, by_value);
    }
    if (s->map_shape.extension) {
        contract_rows(&s->map_shape, s->omega_t, count, by_key);
        contract_rows(&s->map_shape, s->omega_t, count, by_value);
    }
    for (size_t block = 1; block < n_blocks(s) && z->with_beta; block++)
        for (size_t n = n0; n < n0 + count; n++) {
            logits_of(s, 0)[n] += logits_of(s, block)[n];
            logits_of(s, 0)[ld_n + n] += logits_of(s, block)[ld_n + n];
        }
    if (z->with_beta)
        memcpy(s->dbeta_weight + n0, logits_of(s, 0) + ld_n + n0, count * sizeof(real));
    for (size_t n = 0; n < count; n++)
        memcpy(s->dkey_weight + (n0 + n) * z->ld, by_value + n * ld, z->ld * sizeof(real));
    fwm_restore_subnormals(before);
}

void linear_attention(Step *s)
{
    const FwmModelSizes *z = s->sizes;
    fwm_parallel_for(s->model->threads, n_blocks(s), block_task, s);
    if (s->purpose == LOSS_ONLY)
        return;
    fwm_parallel_for(s->model->threads, fwm_tiles(z->n_keys, KEYS_IN_TILE), reduce_task, s);
    const real *dby_key = table_of(s, 0);
    memset(s->dkey_bias, 0, z->ld * sizeof(real));
    for (size_t n = 0; n < z->n_keys; n++)
        add(z->ld, dby_key + n * s->table_ld, s->dkey_bias);
    *s->dbeta_bias = 0;
    for (size_t n = 0; n < z->n_keys && z->with_beta; n++)
        *s->dbeta_bias += logits_of(s, 0)[n];
    s->weight_gradient = (Product){transposed(s->embedding, z->ld_e), dby_key, s->table_ld, z->n_keys};
    s->embedding_gradient = (Product){rows_of(dby_key, s->table_ld), s->key_weight_t, z->ld_e, z->d};
}
