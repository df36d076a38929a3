/* The softmax read-out: softmax attention with one query, which keeps every key ("softmax" in the paper's Setting 1):
 *
 *     s_t = k_t . q / sqrt(p),   w = softmax(s),   y = sum_t w_t e_{v_t}
 *
 * Backward: saved w and y.
 *
 *     ds_t = w_t (dy[v_t] - dy . y)
 *     dk_t = ds_t q / sqrt(p),   dq = sum_t ds_t k_t / sqrt(p)
 *
 * Derived in docs/mathematics/readout_softmax.md. */
#include "kernels/retrieval/readouts/softmax.h"

#include <math.h>
#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/base/gemm.h"
#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"
#include "kernels/retrieval/readouts/readout.h"

/* A weight less than exp(NEGLIGIBLE) times the largest is set to 0, and so is a score's gradient that is as small
 * beside dy. Both are far below the resolution of the number type, and products with them would soon be subnormal and
 * slow. */
#define NEGLIGIBLE (real)(FWM_REAL_IS_DOUBLE ? -300 : -60)

void softmax_forward(size_t length, size_t n_values, const int32_t *values, real *scores, real *y)
{
    real largest = length ? scores[0] : 0;
#pragma omp simd reduction(max : largest)
    for (size_t t = 0; t < length; t++)
        largest = scores[t] > largest ? scores[t] : largest;
    real total = 0;
#pragma omp simd reduction(+ : total)
    for (size_t t = 0; t < length; t++) {
        const real below = scores[t] - largest, weight = exp_real(below);
        scores[t] = below < NEGLIGIBLE ? 0 : weight;
        total += scores[t];
    }
    for (size_t n = 0; n < n_values; n++)
        y[n] = 0 * total; /* NaN if a weight is: its product with the zeros of a one-hot value */
    for (size_t t = 0; t < length; t++) {
        scores[t] /= total;
        y[values[t]] += scores[t];
    }
}

void softmax_backward(size_t length, size_t n_values, const int32_t *values, const real *y, const real *dy,
                      real *weights)
{
    real dy_y = 0, largest = 0;
    for (size_t n = 0; n < n_values; n++) {
        dy_y += dy[n] * y[n];
        largest = FWM_FABS(dy[n]) > largest ? FWM_FABS(dy[n]) : largest;
    }
    const real least = largest * exp_real(NEGLIGIBLE);
    for (size_t t = 0; t < length; t++) {
        const real ds = weights[t] * (dy[values[t]] - dy_y);
        weights[t] = FWM_FABS(ds) < least ? 0 : ds;
    }
}

typedef struct {
    real *dq;         /* ld */
    real *scores;     /* L: of one query; then its weights, then the gradients of its scores */
    real *all_scores; /* L x ld_queries */
    real *y;          /* N: the answer to one query of many */
} SoftmaxScratch;

static SoftmaxScratch take_scratch(size_t length, size_t n_values, size_t ld, size_t ld_queries, Arena *arena)
{
    SoftmaxScratch w;
    w.dq = take(arena, ld);
    w.scores = take(arena, length);
    w.all_scores = take(arena, length * ld_queries);
    w.y = take(arena, n_values);
    return w;
}

static size_t scratch_bytes(size_t length, size_t n_values, size_t ld, size_t ld_queries)
{
    Arena arena = {0};
    take_scratch(length, n_values, ld, ld_queries, &arena);
    return arena.next;
}

static SoftmaxScratch scratch_at(const ReadoutSequence *s, void *scratch, size_t ld_queries)
{
    Arena arena = arena_at(scratch);
    return take_scratch(s->length, s->n_values, s->ld, ld_queries, &arena);
}

static real scale_of(const ReadoutSequence *s)
{
    return 1 / FWM_SQRT((real)s->features);
}

static void forward(const ReadoutSequence *s, void *scratch, real *y)
{
    real *scores = scratch_at(s, scratch, 0).scores;
    for (size_t t = 0; t < s->length; t++)
        scores[t] = scale_of(s) * dot(s->ld, s->keys + t * s->ld, s->query);
    softmax_forward(s->length, s->n_values, s->values, scores, y);
}

static size_t backward_begin(const ReadoutSequence *s, void *scratch, const real *y, const real *dy)
{
    const SoftmaxScratch w = scratch_at(s, scratch, 0);
    memset(w.dq, 0, s->ld * sizeof(real));
    softmax_backward(s->length, s->n_values, s->values, y, dy, w.scores);
    return fwm_tiles(s->length, FWM_TILE);
}

static TokenRange backward_tile(const ReadoutSequence *s, void *scratch, size_t tile, real *dkeys, real *dbeta)
{
    (void)dbeta;
    const TokenRange range = {tile * FWM_TILE, fwm_min(FWM_TILE, s->length - tile * FWM_TILE)};
    const SoftmaxScratch w = scratch_at(s, scratch, 0);
    const real *ds = w.scores + range.start;
    const real *keys = s->keys + range.start * s->ld;
    for (size_t t = 0; t < range.count; t++, keys += s->ld, dkeys += s->ld) {
        const real scaled = scale_of(s) * ds[t];
        for (size_t i = 0; i < s->ld; i++)
            dkeys[i] = scaled * s->query[i];
        add_scaled(s->ld, scaled, keys, w.dq);
    }
    return range;
}

static void backward_end(const ReadoutSequence *s, void *scratch, real *dquery)
{
    memcpy(dquery, scratch_at(s, scratch, 0).dq, s->ld * sizeof(real));
}

static void answer(const ReadoutSequence *s, void *scratch, const real *queries, size_t ld_queries, real *y)
{
    const SoftmaxScratch w = scratch_at(s, scratch, ld_queries);
    gemm(s->length, ld_queries, s->ld, rows_of(s->keys, s->ld), queries, ld_queries, 0, NULL, w.all_scores, ld_queries);
    for (size_t c = 0; c < ld_queries; c++) {
        for (size_t t = 0; t < s->length; t++)
            w.scores[t] = scale_of(s) * w.all_scores[t * ld_queries + c];
        softmax_forward(s->length, s->n_values, s->values, w.scores, w.y);
        for (size_t n = 0; n < s->n_values; n++)
            y[n * ld_queries + c] = w.y[n];
    }
}

const Readout FWM_NAME(readout_softmax) = {
    .info = {.name = "softmax",
             .function = "softmax_rule",
             .uses_map = 0,
             .uses_beta = 0,
             .summary = "softmax attention: every pair is kept, no feature map"},
    .scratch = scratch_bytes,
    .forward = forward,
    .backward_begin = backward_begin,
    .backward_tile = backward_tile,
    .backward_end = backward_end,
    .answer = answer,
};
