/* The sequences of a pass, for read-outs of mapped keys: gather the tokens' pre-activations, map them, read out, and do
 * the whole backward, one sequence at a time in one thread's cache.
 *
 * A token of which all features are 0 (FAVOR+ at large N: nearly all tokens) is left out where the read-out allows it,
 * before its u is gathered, and rows of gradients that are then not touched take no work.
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
    int32_t *keys, *values;    /* L: of the tokens that are not left out */
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
    w.keys = take_bytes(arena, s->leaves_out ? L * sizeof(int32_t) : 0);
    w.values = take_bytes(arena, s->leaves_out ? L * sizeof(int32_t) : 0);
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

/* The tokens of a sequence that go through the map. */
typedef struct {
    size_t count;
    const int32_t *keys, *values; /* count */
} TokenList;

static TokenList all_tokens(const Step *s, size_t b)
{
    const size_t L = s->sizes->length;
    return (TokenList){L, s->batch->keys + b * L, s->batch->values + b * L};
}

/* out = x + y; out may be x. */
static inline void add_rows(size_t n, const real *x, const real *y, real *out)
{
    for (size_t i = 0; i < n; i += FWM_LANES)
        vec_store(out + i, vec_load(x + i) + vec_load(y + i));
}

/* pre (count x ld) */
static void gather(const Step *s, const MappedScratch *w, const TokenList *tokens)
{
    const size_t ld = s->map_shape.ld;
    for (size_t t = 0; t < tokens->count; t++)
        add_rows(ld, s->by_key + (size_t)tokens->keys[t] * ld, s->by_value + (size_t)tokens->values[t] * ld,
                 w->pre + t * ld);
}

/* The same for those of `all` whose features are not all 0, which are returned. */
static TokenList gather_live(const Step *s, const MappedScratch *w, const TokenList *all)
{
    const MapShape *shape = &s->map_shape;
    const size_t ld = shape->ld, u = shape->u;
    const real *largest_by_key = s->largest_u, *largest_by_value = largest_by_key + s->sizes->n_keys;
    TokenList live = {0, w->keys, w->values};
    for (size_t t = 0; t < all->count; t++) {
        const size_t key = (size_t)all->keys[t], value = (size_t)all->values[t];
        const real *of_key = s->by_key + key * ld, *of_value = s->by_value + value * ld;
        real *row = w->pre + live.count * ld;
        add_rows(u, of_key, of_value, row);
        if (s->map->vanishes(shape, row, largest_by_key[key] + largest_by_value[value]))
            continue;
        add_rows(ld - u, of_key + u, of_value + u, row + u);
        w->keys[live.count] = all->keys[t];
        w->values[live.count++] = all->values[t];
    }
    return live;
}

/* phi (count x ld_features) and beta (count) */
static void map_tokens(const Step *s, const MappedScratch *w, const TokenList *tokens)
{
    s->map->forward(&s->map_shape, tokens->count, w->pre, w->phi, w->of_map);
    if (!s->readout->info.uses_beta)
        return;
    for (size_t t = 0; t < tokens->count; t++)
        w->beta[t] = s->logit_by_key[tokens->keys[t]] + s->beta_weight[tokens->values[t]];
#pragma omp simd
    for (size_t t = 0; t < tokens->count; t++)
        w->beta[t] = logistic(w->beta[t]);
}

/* The gradient table of a block: N rows by key, then N rows by value. */
static real *table_of_block(const Step *s, size_t block)
{
    return s->block_tables + block * 2 * s->sizes->n_keys * s->table_ld;
}

/* Of each row of that table; NULL if all of them have been cleared. */
static bool *touched_in_block(const Step *s, size_t block)
{
    return s->leaves_out ? s->touched + block * 2 * s->sizes->n_keys : NULL;
}

/* The same for the logits of beta: padded(N) numbers by key, then by value. */
static real *logits_of_block(const Step *s, size_t block)
{
    return s->block_logits + block * 2 * fwm_padded(s->sizes->n_keys);
}

/* Row n += x, where a row that is not touched stands for zeros. */
static inline void add_to_row(size_t ld, const real *x, real *rows, bool *touched, size_t n)
{
    if (!touched || touched[n]) {
        add(ld, x, rows + n * ld);
        return;
    }
    copy(ld, x, rows + n * ld);
    touched[n] = true;
}

/* Scatters the gradients of the tokens from `start` on, dpre and dbeta, to the tables of the block. */
static void scatter(const Step *s, const MappedScratch *w, const TokenList *tokens, TokenRange range, size_t block)
{
    const size_t N = s->sizes->n_keys, ld = s->map_shape.ld;
    real *table = table_of_block(s, block), *dlogit_by_key = logits_of_block(s, block),
         *dlogit_by_value = dlogit_by_key + fwm_padded(N);
    bool *touched = touched_in_block(s, block);
    for (size_t t = 0; t < range.count; t++) {
        const size_t token = range.start + t, key = (size_t)tokens->keys[token], value = (size_t)tokens->values[token];
        add_to_row(ld, w->dpre + t * ld, table, touched, key);
        add_to_row(ld, w->dpre + t * ld, table, touched, N + value);
        if (!s->readout->info.uses_beta)
            continue;
        const real dlogit = w->dbeta[t] * w->beta[token] * (1 - w->beta[token]);
        dlogit_by_key[key] += dlogit;
        dlogit_by_value[value] += dlogit;
    }
}

static void sequence_backward(const Step *s, const MappedScratch *w, const ReadoutSequence *sequence,
                              const TokenList *tokens, size_t b, size_t block)
{
    const MapShape *shape = &s->map_shape;
    const size_t ld = shape->ld;
    const size_t n_tiles =
        s->readout->backward_begin(sequence, w->of_readout, s->y + b * fwm_padded(sequence->n_values), w->dy);
    for (size_t tile = 0; tile < n_tiles; tile++) {
        const TokenRange range = s->readout->backward_tile(sequence, w->of_readout, tile, w->dphi, w->dbeta);
        s->map->backward(shape, range.count, w->dphi, w->pre + range.start * ld,
                         w->phi + range.start * shape->ld_features, w->dpre, w->of_map);
        scatter(s, w, tokens, range, block);
    }
    s->readout->backward_end(sequence, w->of_readout, w->dquery);
    real *dquery_row = s->dqueries + b * ld;
    s->map->backward(shape, 1, w->dquery, s->queries + b * ld, w->query, dquery_row, w->of_map);
    if (shape->extension)
        omega_backward(shape, s->omega_t, 1, dquery_row);
}

/* Maps the tokens, whose pre-activations have been gathered, and reads out; returns whether y is finite, as far as the
 * loss shows it. */
static bool sequence_forward(const Step *s, const MappedScratch *w, const TokenList *tokens, size_t b,
                             ReadoutSequence *sequence)
{
    map_tokens(s, w, tokens);
    *sequence = (ReadoutSequence){
        .length = tokens->count,
        .n_values = s->sizes->n_keys,
        .features = s->map_shape.features,
        .ld = s->map_shape.ld_features,
        .keys = w->phi,
        .values = tokens->values,
        .beta = s->readout->info.uses_beta ? w->beta : NULL,
        .query = w->query,
        .as_published = true,
    };
    s->readout->forward(sequence, w->of_readout, s->y + b * fwm_padded(s->sizes->n_keys));
    if (!s->batch->answer)
        return true;
    s->losses[b] = loss_of_sequence(s, b, w->dy);
    return s->losses[b] - s->losses[b] == 0;
}

static void sequence_pass(const Step *s, const MappedScratch *w, size_t b, size_t block)
{
    const TokenList all = all_tokens(s, b);
    TokenList tokens = all;
    ReadoutSequence sequence;
    s->map->forward(&s->map_shape, 1, s->queries + b * s->table_ld, w->query, w->of_map);
    if (s->leaves_out)
        tokens = gather_live(s, w, &all);
    else
        gather(s, w, &all);
    if (!sequence_forward(s, w, &tokens, b, &sequence) && tokens.count < all.count) {
        tokens = all; /* their gradients are NaN too */
        gather(s, w, &all);
        sequence_forward(s, w, &all, b, &sequence);
    }
    if (s->purpose != LOSS_ONLY)
        sequence_backward(s, w, &sequence, &tokens, b, block);
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
        if (s->leaves_out)
            memset(touched_in_block(s, block), 0, 2 * z->n_keys * sizeof(bool));
        else
            memset(table_of_block(s, block), 0, 2 * z->n_keys * s->table_ld * sizeof(real));
        memset(logits_of_block(s, block), 0, 2 * fwm_padded(z->n_keys) * sizeof(real));
    }
    for (size_t b = block * n / blocks; b < (block + 1) * n / blocks; b++)
        sequence_pass(s, &w, b, block);
}

/* Accumulates `count` rows from `first` on of the blocks' tables, in order, into those of block 0. */
static void reduce_rows(const Step *s, size_t first, size_t count)
{
    const size_t ld = s->table_ld;
    real *sum = table_of_block(s, 0) + first * ld;
    for (size_t block = 1; block < n_blocks(s); block++)
        add(count * ld, table_of_block(s, block) + first * ld, sum);
}

/* The same where rows may not be touched; returns whether any of them is. */
static bool reduce_touched(const Step *s, size_t first, size_t count)
{
    const size_t ld = s->table_ld;
    real *sum = table_of_block(s, 0) + first * ld;
    bool *touched = touched_in_block(s, 0) + first, any = false;
    for (size_t block = 1; block < n_blocks(s); block++)
        for (size_t n = 0; n < count; n++)
            if (touched_in_block(s, block)[first + n])
                add_to_row(ld, table_of_block(s, block) + (first + n) * ld, sum, touched, n);
    for (size_t n = 0; n < count; n++) {
        any |= touched[n];
        if (!touched[n])
            memset(sum + n * ld, 0, ld * sizeof(real));
    }
    return any;
}

/* Sums the rows and turns u's gradients into x's, dx += Omega du; returns whether any row has a gradient. */
static bool reduce_tile(const Step *s, size_t first, size_t count)
{
    bool live = true;
    if (s->leaves_out)
        live = reduce_touched(s, first, count);
    else
        reduce_rows(s, first, count);
    if (live && s->map_shape.extension)
        omega_backward(&s->map_shape, s->omega_t, count, table_of_block(s, 0) + first * s->table_ld);
    return live;
}

/* For a tile of keys and values: sums the blocks' tables, and copies the rows by value into the gradients of the
 * weights. */
static void reduce_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    const size_t n0 = index * TILE_KEYS, count = fwm_min(TILE_KEYS, z->n_keys - n0), ld = s->table_ld;
    const size_t ld_n = fwm_padded(z->n_keys);
    const real *by_value = table_of_block(s, 0) + (z->n_keys + n0) * ld;
    s->live[index] = reduce_tile(s, n0, count);
    reduce_tile(s, z->n_keys + n0, count);
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
        if (s->live[n / TILE_KEYS])
            add(z->ld, dby_key + n * s->table_ld, s->dkey_bias);
    *s->dbeta_bias = 0;
    for (size_t n = 0; n < z->n_keys && z->with_beta; n++)
        *s->dbeta_bias += logits_of_block(s, 0)[n];
    s->weight_gradient = (TiledProduct){transposed(s->embedding, z->ld_e), dby_key, s->table_ld, z->n_keys, s->live};
    s->embedding_gradient = (TiledProduct){rows_of(dby_key, s->table_ld), s->key_weight_t, z->ld_e, z->d, s->live};
}
