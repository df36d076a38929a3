/* RMS norm, with a gate or without: what the table offers, and what forward and backward share. */
#ifndef FWM_KERNELS_NORM_NORM_H
#define FWM_KERNELS_NORM_NORM_H

#include "api/kernels.h"
#include "kernels/base/real.h"
#include "kernels/base/vmath.h"

#define norm_backward_scratch FWM_NAME(norm_backward_scratch)
#define norm_forward FWM_NAME(norm_forward)
#define norm_backward FWM_NAME(norm_backward)

/* The passes of the operation; the call is an FwmNormCall. The forward needs no scratch. */
void norm_forward(const void *call, int threads, void *scratch);
size_t norm_backward_scratch(const void *call, int threads);
void norm_backward(const void *call, int threads, void *scratch);

/* Rows are cut into blocks, whatever the number of threads. */
#define NORM_BLOCK_NUMBERS 16384
#define NORM_FEWEST_ROWS 16 /* of a block, because each block writes a row of sums */

static inline size_t rows_in_block(const FwmNormCall *c)
{
    return c->D * NORM_FEWEST_ROWS < NORM_BLOCK_NUMBERS ? NORM_BLOCK_NUMBERS / c->D : NORM_FEWEST_ROWS;
}

static inline size_t row_blocks(const FwmNormCall *c)
{
    return fwm_tiles(c->rows, rows_in_block(c));
}

/* A row of an array with D numbers a row; NULL if there is no array. */
static inline real *row_of(const FwmNormCall *c, const void *array, size_t row)
{
    return array ? (real *)array + row * c->D : NULL;
}

/* A gate and its derivative, with s = 1 / (1 + exp(-z)): no gate: 1, 0; logistic: s, s (1 - s); SiLU: z s,
 * s (1 + z (1 - s)). */
typedef struct {
    real a, slope;
} NormGate;

ALWAYS_INLINE NormGate gate_of(FwmGating gating, const real *gate, size_t i)
{
    if (gating == FWM_UNGATED)
        return (NormGate){1, 0};
    const real z = gate[i], s = logistic(z);
    return gating == FWM_SILU_GATE ? (NormGate){z * s, s * (1 + z * (1 - s))} : (NormGate){s, s * (1 - s)};
}

/* r = 1 / sqrt(mean(x^2) + eps) */
static inline real reciprocal_rms(const FwmNormCall *c, const real *x)
{
    real squares = 0;
#pragma omp simd reduction(+ : squares)
    for (size_t i = 0; i < c->D; i++)
        squares += x[i] * x[i];
    return 1 / FWM_SQRT(squares / (real)c->D + (real)c->eps);
}

#endif
