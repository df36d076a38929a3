/* The projections k = W_k x + b_k and q = W_q x + b_q, and their gradients.
 *
 * A key is projected once, not once for each token that has it; a value's projection is a row of W_k^T itself. With
 * dK (N x ld) the gradient of the projected keys, E the embedding, X the queries' embeddings and dQ their gradients:
 *
 *     dW_k^T = E^T dK,   dW_q^T = X^T dQ,   db_k = sum of the rows of dK,   db_q = sum of the rows of dQ
 *     dE = dK W_k,  and row query[b] of dE += (dQ W_q)[b]
 *
 * and with dl (N) the gradient of the keys' logits of beta:
 *
 *     dw_b = E^T dl,   db_b = sum of dl,   dE += dl w_b^T
 *
 * In an update Adam takes each tile of gradients while it is in the cache. dE needs the weights from before the update:
 * these are in their transposes. A tile of dE is kept in scratch, and only until Adam has taken it, because dE, m,
 * v and E are most of the bytes that a step moves.
 *
 * Derived in docs/mathematics/retrieval.md. */
#include "kernels/retrieval/projection.h"

#include <string.h>

#include "kernels/base/transpose.h"
#include "kernels/base/vector.h"
#include "kernels/maps/omega.h"
#include "kernels/retrieval/adam.h"
#include "runtime/threads.h"

#define TILE_QUERIES 8

static void project_keys_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    const size_t n0 = index * TILE_KEYS, count = fwm_min(TILE_KEYS, z->n_keys - n0), ld = s->table_ld;
    real *rows = s->by_key + n0 * ld;
    for (size_t n = 0; n < count; n++)
        memcpy(rows + n * ld, s->key_bias, z->ld * sizeof(real));
    gemm(count, z->ld, z->embedding, rows_of(s->embedding + n0 * z->ld_e, z->ld_e), s->key_weight + z->n_keys * z->ld,
         z->ld, 1, rows, rows, ld);
    for (size_t n = n0; n < n0 + count && z->with_beta; n++)
        s->logit_by_key[n] = dot(z->ld_e, s->embedding + n * z->ld_e, s->beta_weight + z->n_keys) + *s->beta_bias;
    if (s->map_shape.extension == 0)
        return;
    omega_forward(&s->map_shape, s->omega, count, rows);
    real *values = s->by_value + n0 * ld;
    for (size_t n = 0; n < count; n++)
        memcpy(values + n * ld, s->key_weight + (n0 + n) * z->ld, z->ld * sizeof(real));
    omega_forward(&s->map_shape, s->omega, count, values);
    for (size_t n = 0; n < count && s->leaves_out; n++) {
        s->largest_u[n0 + n] = s->map->largest(&s->map_shape, rows + n * ld);
        s->largest_u[z->n_keys + n0 + n] = s->map->largest(&s->map_shape, values + n * ld);
    }
}

static void project_queries_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    const size_t b0 = index * TILE_QUERIES, count = fwm_min(TILE_QUERIES, s->batch->n - b0), ld = s->table_ld;
    real *rows = s->query_rows + b0 * z->ld_e, *queries = s->queries + b0 * ld;
    memset(queries, 0, count * ld * sizeof(real));
    for (size_t b = 0; b < count; b++) {
        memcpy(rows + b * z->ld_e, s->embedding + (size_t)s->batch->query[b0 + b] * z->ld_e, z->ld_e * sizeof(real));
        memcpy(queries + b * ld, s->query_bias, z->ld * sizeof(real));
    }
    gemm(count, z->ld, z->embedding, rows_of(rows, z->ld_e), s->query_weight, z->ld, 1, queries, queries, ld);
    if (s->map_shape.extension)
        omega_forward(&s->map_shape, s->omega, count, queries);
}

static void transpose_weights_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    const size_t e0 = index * TILE_ENTRIES, count = fwm_min(TILE_ENTRIES, z->embedding - e0);
    if (z->with_map)
        transpose(count, z->ld, s->key_weight + (z->n_keys + e0) * z->ld, z->ld, s->key_weight_t + e0, z->ld_e);
    transpose(count, z->ld, s->query_weight + e0 * z->ld, z->ld, s->query_weight_t + e0, z->ld_e);
}

void project(Step *s)
{
    const FwmModelSizes *z = s->sizes;
    const size_t transposes = s->purpose == LOSS_ONLY ? 0 : fwm_tiles(z->embedding, TILE_ENTRIES);
    for (size_t i = 0; i < z->ld && transposes && z->with_map; i++)
        memset(s->key_weight_t + i * z->ld_e + z->embedding, 0, (z->ld_e - z->embedding) * sizeof(real));
    for (size_t i = 0; i < z->ld && transposes; i++)
        memset(s->query_weight_t + i * z->ld_e + z->embedding, 0, (z->ld_e - z->embedding) * sizeof(real));
    if (transposes && z->with_beta)
        memcpy(s->beta_weight_before, s->beta_weight + z->n_keys, z->ld_e * sizeof(real));
    const FwmLoop loops[] = {{z->with_map ? fwm_tiles(z->n_keys, TILE_KEYS) : 0, project_keys_task},
                             {fwm_tiles(s->batch->n, TILE_QUERIES), project_queries_task},
                             {transposes, transpose_weights_task}};
    fwm_parallel_loops(s->model->threads, 3, loops, s);
}

static TiledProduct product_from_row(const TiledProduct *product, size_t row)
{
    TiledProduct part = *product;
    part.left.data += row * part.left.row;
    return part;
}

/* out (rows x columns) = left right; the tiles of right that are zeros are left out. */
static void product_along_live(const TiledProduct *p, size_t rows, size_t columns, real *out, size_t ld_out)
{
    const size_t tiles = fwm_tiles(p->k, TILE_KEYS);
    const real *before = NULL;
    for (size_t first = 0, end; first < tiles; first = end + 1) {
        for (end = first; end < tiles && (!p->live || p->live[end]); end++)
            ;
        if (end == first)
            continue;
        const size_t k0 = first * TILE_KEYS, k = fwm_min(end * TILE_KEYS, p->k) - k0;
        const Strided left = {p->left.data + k0 * p->left.column, p->left.row, p->left.column};
        gemm(rows, columns, k, left, p->right + k0 * p->ld_right, p->ld_right, 1, before, out, ld_out);
        before = out;
    }
    for (size_t i = 0; i < rows && !before; i++)
        memset(out + i * ld_out, 0, columns * sizeof(real));
}

static void weight_gradients_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    const size_t e0 = index * TILE_ENTRIES, count = fwm_min(TILE_ENTRIES, z->embedding - e0);
    const size_t width = fwm_min(TILE_ENTRIES, z->ld_e - e0), B = s->batch->n;
    const TiledProduct keys = product_from_row(&s->weight_gradient, e0);
    product_along_live(&keys, count, z->ld, s->dkey_weight + (z->n_keys + e0) * z->ld, z->ld);
    gemm(count, z->ld, B, transposed(s->query_rows + e0, z->ld_e), s->dqueries, s->table_ld, 0, NULL,
         s->dquery_weight + e0 * z->ld, z->ld);
    gemm(B, width, z->d, rows_of(s->dqueries, s->table_ld), s->query_weight_t + e0, z->ld_e, 0, NULL,
         s->dquery_rows + e0, z->ld_e);
    if (z->with_beta)
        gemm(1, width, z->n_keys, rows_of(s->block_logits, z->n_keys), s->embedding + e0, z->ld_e, 0, NULL,
             s->dbeta_weight + z->n_keys + e0, width);
    if (s->purpose == UPDATE) {
        adam_update_range(s, s->model->key_weight + (z->n_keys + e0) * z->ld, count * z->ld);
        adam_update_range(s, s->model->query_weight + e0 * z->ld, count * z->ld);
    }
    if (index == 0) {
        memset(s->dquery_bias, 0, z->ld * sizeof(real));
        for (size_t b = 0; b < B; b++)
            add(z->ld, s->dqueries + b * s->table_ld, s->dquery_bias);
    }
}

void weight_gradients(Step *s)
{
    fwm_parallel_for(s->model->threads, fwm_tiles(s->sizes->embedding, TILE_ENTRIES), weight_gradients_task, s);
}

size_t embedding_scratch(const FwmModel *model)
{
    return TILE_KEYS * model->sizes.ld_e * sizeof(real);
}

static void embedding_gradients_task(void *context, size_t index, int thread)
{
    const Step *s = context;
    const FwmModelSizes *z = s->sizes;
    const size_t n0 = index * TILE_KEYS, count = fwm_min(TILE_KEYS, z->n_keys - n0), at = n0 * z->ld_e;
    Arena arena = thread_scratch(s, thread);
    real *out = s->purpose == UPDATE ? take(&arena, TILE_KEYS * z->ld_e) : s->dembedding + at;
    const TiledProduct keys = product_from_row(&s->embedding_gradient, n0);
    if (keys.live && !keys.live[index])
        memset(out, 0, count * z->ld_e * sizeof(real));
    else
        gemm(count, z->ld_e, keys.k, keys.left, keys.right, keys.ld_right, 0, NULL, out, z->ld_e);
    for (size_t n = 0; n < count && z->with_beta; n++)
        add_scaled(z->ld_e, s->block_logits[n0 + n], s->beta_weight_before, out + n * z->ld_e);
    for (size_t b = 0; b < s->batch->n; b++) {
        const size_t row = (size_t)s->batch->query[b] - n0;
        if (row < count)
            add(z->ld_e, s->dquery_rows + b * z->ld_e, out + row * z->ld_e);
    }
    if (s->purpose == UPDATE)
        adam_update(&s->adam, count * z->ld_e, out, s->embedding + at,
                    (real *)s->model->moment1 + s->model->embedding + at,
                    (real *)s->model->moment2 + s->model->embedding + at);
}

void embedding_gradients(Step *s)
{
    const FwmLoop loops[] = {{fwm_tiles(s->sizes->n_keys, TILE_KEYS), embedding_gradients_task},
                             {s->purpose == UPDATE ? adam_tasks(s) : 0, adam_task}};
    fwm_parallel_loops(s->model->threads, 2, loops, s);
}
