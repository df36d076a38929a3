/* The sum read-out: linear attention (Katharopoulos et al., 2020), a fast weight memory written by outer products.
 *
 *     W = sum_t e_{v_t} k_t^T,   z = sum_t k_t,   y = W q / (z . q + eps),   eps = 1e-6
 *
 * Forward, without W: with the scores a_t = k_t . q,
 *
 *     den = sum_t a_t + eps,   y[n] = sum of a_t where v_t = n, divided by den
 *
 * Backward: saved den and y. dy/da_t = (e_{v_t} - y) / den, so
 *
 *     g_t = (dy[v_t] - dy . y) / den
 *     dk_t = g_t q
 *     dq   = sum_t g_t k_t
 *
 * Derived in docs/mathematics/readout_sum.md. */
#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/base/gemm.h"
#include "kernels/base/vector.h"
#include "kernels/retrieval/readouts/readout.h"

static const real EPS = (real)1e-6;

/* columns: ld_queries, or 1 for a single query. */
typedef struct {
    real *dq;  /* ld */
    real *a;   /* L x columns; in the backward g (L) */
    real *den; /* columns */
} SumScratch;

static SumScratch take_scratch(size_t length, size_t ld, size_t columns, Arena *arena)
{
    SumScratch w;
    w.dq = take(arena, ld);
    w.a = take(arena, length * columns);
    w.den = take(arena, columns);
    return w;
}

static size_t scratch_bytes(size_t length, size_t n_values, size_t ld, size_t ld_queries)
{
    (void)n_values;
    Arena arena = {0};
    take_scratch(length, ld, ld_queries ? ld_queries : 1, &arena);
    return arena.next;
}

static SumScratch scratch_at(const ReadoutSequence *s, void *scratch, size_t columns)
{
    Arena arena = arena_at(scratch);
    return take_scratch(s->length, s->ld, columns, &arena);
}

static void forward(const ReadoutSequence *s, void *scratch, real *y)
{
    const SumScratch w = scratch_at(s, scratch, 1);
    real *a = w.a;
    memset(y, 0, s->n_values * sizeof(real));
    real total = answer_of_nothing(s->ld, s->query);
    for (size_t t = 0; t < s->length; t++) {
        a[t] = dot(s->ld, s->keys + t * s->ld, s->query);
        y[s->values[t]] += a[t];
        total += a[t];
        if (a[t] - a[t] != 0) /* inf times the zeros of a one-hot value is NaN */
            total += answer_of_nothing(s->ld, s->keys + t * s->ld);
    }
    *w.den = total + EPS;
    for (size_t n = 0; n < s->n_values; n++)
        y[n] /= *w.den;
}

static size_t backward_begin(const ReadoutSequence *s, void *scratch, const real *y, const real *dy)
{
    const SumScratch w = scratch_at(s, scratch, 1);
    real *dq = w.dq, *g = w.a;
    const real den = *w.den;
    real dy_y = 0;
    for (size_t n = 0; n < s->n_values; n++)
        dy_y += dy[n] * y[n];
    for (size_t t = 0; t < s->length; t++)
        g[t] = (dy[s->values[t]] - dy_y) / den;
    const real nothing = 0 / den; /* NaN if the answer is */
    for (size_t i = 0; i < s->ld; i++)
        dq[i] = nothing;
    return fwm_tiles(s->length, FWM_TILE);
}

static TokenRange backward_tile(const ReadoutSequence *s, void *scratch, size_t tile, real *dkeys, real *dbeta)
{
    (void)dbeta;
    const TokenRange range = {tile * FWM_TILE, fwm_min(FWM_TILE, s->length - tile * FWM_TILE)};
    const SumScratch w = scratch_at(s, scratch, 1);
    real *dq = w.dq;
    const real *g = w.a + range.start;
    const real *keys = s->keys + range.start * s->ld;
    for (size_t t = 0; t < range.count; t++, keys += s->ld, dkeys += s->ld)
        for (size_t i = 0; i < s->ld; i += FWM_LANES) {
            vec_store(dkeys + i, g[t] * vec_load(s->query + i));
            vec_store(dq + i, vec_load(dq + i) + g[t] * vec_load(keys + i));
        }
    return range;
}

static void backward_end(const ReadoutSequence *s, void *scratch, real *dquery)
{
    memcpy(dquery, scratch_at(s, scratch, 1).dq, s->ld * sizeof(real));
}

static void answer(const ReadoutSequence *s, void *scratch, const real *queries, size_t ld_queries, real *y)
{
    const SumScratch w = scratch_at(s, scratch, ld_queries);
    real *scores = w.a, *den = w.den;
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
    /* a subnormal score vanishes beside eps, and a subnormal gradient beside Adam's eps */
    .flushes_subnormals = true,
    .ignores_zeros = true,
    .scratch = scratch_bytes,
    .forward = forward,
    .backward_begin = backward_begin,
    .backward_tile = backward_tile,
    .backward_end = backward_end,
    .answer = answer,
};
