/* RMS norm, forward, for each number of a row x, and its gate z if there is one:
 *
 *     n = r x with r = 1 / sqrt(mean(x^2) + eps),   y = weight n a
 *
 * where a = 1 without a gate, else a = s, or z s (SiLU), with s = 1 / (1 + exp(-z)).
 *
 * Derived in docs/mathematics/rms_norm.md. */
#include "kernels/norm/norm.h"
#include "runtime/threads.h"

ALWAYS_INLINE void norm_row(FwmGating gating, size_t D, real r, const real *restrict x, const real *restrict weight,
                            const real *restrict z, real *restrict y)
{
#pragma omp simd
    for (size_t i = 0; i < D; i++)
        y[i] = weight[i] * (r * x[i]) * gate_of(gating, z, i).a;
}

static void block_task(void *context, size_t index, int thread)
{
    (void)thread;
    const FwmNormCall *c = context;
    const size_t D = c->D, first = index * rows_in_block(c), last = fwm_min(first + rows_in_block(c), c->rows);
    const real *weight = c->weight;
    for (size_t row = first; row < last; row++) {
        const real *x = row_of(c, c->x, row), *z = row_of(c, c->gate, row), r = reciprocal_rms(c, x);
        real *y = row_of(c, c->y, row);
        switch (c->gating) {
        case FWM_UNGATED: norm_row(FWM_UNGATED, D, r, x, weight, z, y); break;
        case FWM_LOGISTIC_GATE: norm_row(FWM_LOGISTIC_GATE, D, r, x, weight, z, y); break;
        default: norm_row(FWM_SILU_GATE, D, r, x, weight, z, y);
        }
    }
}

void norm_forward(const void *call, int threads, void *scratch)
{
    const FwmNormCall *c = call;
    (void)scratch;
    fwm_parallel_for(fwm_threads_for(c->rows * c->D, threads), row_blocks(c), block_task, (void *)c);
}
