/* The gated RMS norm, forward, for each number of a row x with its gate z:
 *
 *     n = r x with r = 1 / sqrt(mean(x^2) + eps),   y = weight n a(z)
 *
 * where a(z) = s, or z s (SiLU), with s = 1 / (1 + exp(-z)). */
#include "kernels/norm/norm.h"
#include "runtime/subnormals.h"
#include "runtime/threads.h"

static void gate_by_logistic(size_t D, real r, const real *restrict x, const real *restrict z, const real *restrict weight,
                             real *restrict y)
{
#pragma omp simd
    for (size_t i = 0; i < D; i++)
        y[i] = weight[i] * (r * x[i]) * logistic(z[i]);
}

static void gate_by_silu(size_t D, real r, const real *restrict x, const real *restrict z, const real *restrict weight,
                         real *restrict y)
{
#pragma omp simd
    for (size_t i = 0; i < D; i++)
        y[i] = weight[i] * (r * x[i]) * (z[i] * logistic(z[i]));
}

static void block_task(void *context, size_t index, int thread)
{
    (void)thread;
    const FwmGatedNorm *c = context;
    const size_t D = c->D, first = index * rows_in_block(c), last = fwm_min(first + rows_in_block(c), c->rows);
    const FwmSubnormals mode = fwm_subnormals(true);
    for (size_t row = first; row < last; row++) {
        const real *x = (const real *)c->x + row * D, *z = (const real *)c->gate + row * D;
        (c->silu ? gate_by_silu : gate_by_logistic)(D, reciprocal_rms(c, x), x, z, c->weight, (real *)c->y + row * D);
    }
    fwm_restore_subnormals(mode);
}

void norm_forward(const FwmGatedNorm *c, int threads)
{
    fwm_parallel_for(threads_for_rows(c, threads), row_blocks(c), block_task, (void *)c);
}
