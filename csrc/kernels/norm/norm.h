/* The gated RMS norm: what the table offers, and how its rows are cut into blocks. */
#ifndef FWM_KERNELS_NORM_H
#define FWM_KERNELS_NORM_H

#include "kernels/base/real.h"
#include "kernels/base/vmath.h"
#include "kernels/kernels.h"

#define norm_backward_scratch FWM_NAME(norm_backward_scratch)
#define norm_forward FWM_NAME(norm_forward)
#define norm_backward FWM_NAME(norm_backward)

size_t norm_backward_scratch(const FwmGatedNorm *c); /* bytes */
void norm_forward(const FwmGatedNorm *c, int threads);
void norm_backward(const FwmGatedNorm *c, int threads, void *scratch);

#define BLOCK_NUMBERS 16384
#define ENOUGH_NUMBERS 65536

/* Blocks are cut without regard to threads. */
static inline size_t rows_in_block(const FwmGatedNorm *c)
{
    return c->D < BLOCK_NUMBERS ? BLOCK_NUMBERS / c->D : 1;
}

static inline size_t row_blocks(const FwmGatedNorm *c)
{
    return fwm_tiles(c->rows, rows_in_block(c));
}

/* A loop over less work than it takes to wake a thread runs on one. */
static inline int threads_for_rows(const FwmGatedNorm *c, int threads)
{
    return c->rows * c->D < ENOUGH_NUMBERS ? 1 : threads;
}

/* r = 1 / sqrt(mean(x^2) + eps) */
static inline real reciprocal_rms(const FwmGatedNorm *c, const real *x)
{
    real squares = 0;
#pragma omp simd reduction(+ : squares)
    for (size_t i = 0; i < c->D; i++)
        squares += x[i] * x[i];
    return 1 / FWM_SQRT(squares / (real)c->D + (real)c->eps);
}

#endif
