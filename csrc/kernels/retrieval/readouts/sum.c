/* The sum rule: linear attention (Katharopoulos et al., 2020), a fast weight memory written by outer products.
 *
 *     W = sum_t e_{v_t} k_t^T,   z = sum_t k_t,   y = W q / (z . q + eps),   eps = 1e-6
 *
 * Forward, without W: with the scores a_t = k_t . q,
 *     den = sum_t a_t + eps,   y[n] = sum of a_t where v_t = n, divided by den
 *
 * Backward: saved a_t, den and y. dy/da_t = (e_{v_t} - y) / den, so
 *     g_t = (dy[v_t] - dy . y) / den
 *     dk_t = g_t q
 *     dq   = sum_t g_t k_t */
#include <string.h>

#include "kernels/base/gemm.h"
#include "kernels/base/vector.h"
#include "kernels/retrieval/readouts/readout.h"

static const real EPS = (real)1e-6;

/* Workspace: dq (ld), the scores or their gradients (L), den. Many queries: scores (L x n_queries). */
static size_t scratch_size(size_t length, size_t n_values, size_t ld, size_t n_queries)
{
    (void)n_values;
    return ld + fwm_padded(length + 1) + (length + 1) * fwm_padded(n_queries);
}

static void forward(const Sequence *s, real *scratch, real *y)
{
    real *a = scratch + s->ld, *den = a + s->length;
    memset(y, 0, s->n_values * sizeof(real));
    real total = answer_of_nothing(s->ld, s->query);
    for (size_t t = 0; t < s->length; t++) {
        a[t] = dot(s->ld, s->keys + t * s->ld, s->query);
        y[s->values[t]] += a[t];
        total += a[t];
        if (a[t] - a[t] != 0) /* inf times the zeros of a one-hot value is NaN */
            total += answer_of_nothing(s->ld, s->keys + t * s->ld);
    }
    *den = total + EPS;
    for (size_t n = 0; n < s->n_values; n++)
        y[n] /= *den;
}

static size_t backward_begin(const Sequence *s, real *scratch, const real *y, const real *dy)
{
    real *dq = scratch, *g = scratch + s->ld;
    const real den = g[s->length];
    real dy_y = 0;
    for (size_t n = 0; n < s->n_values; n++)
        dy_y += dy[n] * y[n];
    for (size_t t = 0; t < s->length; t++)
        g[t] = (dy[s->values[t]] - dy_y) / den;
    const real nothing = 0 / den; /* NaN where the answer is */
    for (size_t i = 0; i < s->ld; i++)
        dq[i] = nothing;
    return fwm_tiles(s->length, FWM_TILE);
}

static TokenRange backward_tile(const Sequence *s, real *scratch, size_t tile, real *dkeys, real *dbeta)
{
    (void)dbeta;
    const TokenRange range = {tile * FWM_TILE, fwm_min(FWM_TILE, s->length - tile * FWM_TILE)};
    real *dq = scratch;
    const real *g = scratch + s->ld + range.start;
    const real *keys = s->keys + range.start * s->ld;
    for (size_t t = 0; t < range.count; t++, keys += s->ld, dkeys += s->ld)
        for (size_t i = 0; i < s->ld; i += FWM_LANES) {
            vec_store(dkeys + i, g[t] * vec_load(s->query + i));
            vec_store(dq + i, vec_load(dq + i) + g[t] * vec_load(keys + i));
        }
    return range;
}

static void backward_end(const Sequence *s, real *scratch, real *dquery)
{
    memcpy(dquery, scratch, s->ld * sizeof(real));
}

static void answer(const Sequence *s, real *scratch, const real *queries, size_t ld_queries, real *y)
{
    real *scores = scratch, *den = scores + s->length * ld_queries;
    gemm(s->length, ld_queries, s->ld, rows_of(s->keys, s->ld), queries, ld_queries, 0, NULL, scores, ld_queries);
    memset(y, 0, s->n_values * ld_queries * sizeof(real));
    memset(den, 0, ld_queries * sizeof(real));
    for (size_t i = 0; i < s->features; i++)
        add_scaled(ld_queries, 0, queries + i * ld_queries, den);
    for (size_t t = 0; t < s->length; t++) {
        add(ld_queries, scores + t * ld_queries, y + (size_t)s->values[t] * ld_queries);
        add(ld_queries, scores + t * ld_queries, den);
    }
    for (size_t n = 0; n < s->n_values; n++)
        for (size_t c = 0; c < ld_queries; c++)
            y[n * ld_queries + c] /= den[c] + EPS;
}

const Readout FWM_NAME(readout_sum) = {
    .info = {.name = "sum",
             .function = "sum_rule",
             .uses_map = 1,
             .uses_beta = 0,
             .summary = "linear attention: every write is added, the read-out is normalised"},
    .flushes_subnormals =
        true, /* a score of them is nothing beside eps, and a gradient of them nothing beside Adam's eps */
    .scratch = scratch_size,
    .forward = forward,
    .backward_begin = backward_begin,
    .backward_tile = backward_tile,
    .backward_end = backward_end,
    .answer = answer,
};
