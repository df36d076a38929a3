/* RMS norm, backward. Forward, for each number of a row x, and its gate z if there is one:
 *
 *     n = r x with r = 1 / sqrt(mean(x^2) + eps),   y = weight n a
 *
 * where a = 1 without a gate, else a = s, or z s (SiLU), with s = 1 / (1 + exp(-z)). Nothing is saved; r and s are
 * recomputed. With a' = s (1 - s), or s (1 + z (1 - s)):
 *
 *     dweight = sum of dy n a over the rows,   dn = dy weight a,   dz = dy weight n a'
 *
 * n depends on x directly and through r, with dr/dx_i = -r^3 x_i / D = -r^2 n_i / D, so that
 * sum_j dn_j x_j dr/dx_i = -r n_i sum_j dn_j n_j / D:
 *
 *     dx = r (dn - n mean(dn n))
 *
 * There are three loops over a row: for r; for dn, stored in dx, and all the rest; and for dx. Each block of rows
 * writes its own dweight, and these are added in the order of the blocks, so that the bits do not depend on the number
 * of threads.
 *
 * Derived in docs/mathematics/rms_norm.md. */
#include <string.h>

#include "kernels/norm/norm.h"
#include "runtime/threads.h"

typedef struct {
    const FwmNormCall *c;
    real *sums; /* (blocks, D): each block's dweight */
} NormBackward;

/* A row of the arrays; z and dz are NULL without a gate. */
typedef struct {
    const real *x, *z, *dy;
    real *dx, *dz;
} NormRow;

static inline NormRow row_at(const FwmNormCall *c, size_t i)
{
    return (NormRow){row_of(c, c->x, i), row_of(c, c->gate, i), row_of(c, c->dy, i), row_of(c, c->dx, i),
                     row_of(c, c->dgate, i)};
}

/* dn, dz and the row's part of dweight; returns sum(dn n). */
ALWAYS_INLINE real gate_backward(FwmGating gating, size_t D, real r, NormRow row, const real *restrict weight,
                                 real *restrict dweight)
{
    const real *restrict x = row.x, *restrict dy = row.dy;
    real *restrict dn = row.dx, *restrict dz = row.dz, total = 0;
#pragma omp simd reduction(+ : total)
    for (size_t i = 0; i < D; i++) {
        const NormGate gate = gate_of(gating, row.z, i);
        const real n = r * x[i], dy_n = dy[i] * n;
        dweight[i] += dy_n * gate.a;
        if (gating != FWM_UNGATED)
            dz[i] = dy_n * weight[i] * gate.slope;
        dn[i] = dy[i] * weight[i] * gate.a;
        total += dn[i] * n;
    }
    return total;
}

static real any_gate_backward(const FwmNormCall *c, real r, NormRow row, real *dweight)
{
    switch (c->gating) {
    case FWM_UNGATED: return gate_backward(FWM_UNGATED, c->D, r, row, c->weight, dweight);
    case FWM_LOGISTIC_GATE: return gate_backward(FWM_LOGISTIC_GATE, c->D, r, row, c->weight, dweight);
    default: return gate_backward(FWM_SILU_GATE, c->D, r, row, c->weight, dweight);
    }
}

static void backward_row(const FwmNormCall *c, NormRow row, real *dweight)
{
    const real r = reciprocal_rms(c, row.x), mean = any_gate_backward(c, r, row, dweight) / (real)c->D;
    const real *restrict x = row.x;
    real *restrict dx = row.dx;
#pragma omp simd
    for (size_t i = 0; i < c->D; i++)
        dx[i] = r * (dx[i] - mean * (r * x[i]));
}

static void block_task(void *context, size_t index, int thread)
{
    (void)thread;
    const NormBackward *b = context;
    const FwmNormCall *c = b->c;
    const size_t first = index * rows_in_block(c), last = fwm_min(first + rows_in_block(c), c->rows);
    real *dweight = b->sums + index * c->D;
    memset(dweight, 0, c->D * sizeof(real));
    for (size_t row = first; row < last; row++)
        backward_row(c, row_at(c, row), dweight);
}

static void add_blocks(const NormBackward *b)
{
    const size_t D = b->c->D;
    real *restrict dweight = b->c->dweight;
    memset(dweight, 0, D * sizeof(real));
    for (size_t block = 0; block < row_blocks(b->c); block++) {
        const real *restrict part = b->sums + block * D;
        for (size_t i = 0; i < D; i++)
            dweight[i] += part[i];
    }
}

size_t norm_backward_scratch(const void *call, int threads)
{
    const FwmNormCall *c = call;
    (void)threads;
    return row_blocks(c) * c->D * sizeof(real);
}

void norm_backward(const void *call, int threads, void *scratch)
{
    const FwmNormCall *c = call;
    NormBackward b = {.c = c, .sums = scratch};
    fwm_parallel_for(fwm_threads_for(c->rows * c->D, threads), row_blocks(c), block_task, &b);
    add_blocks(&b);
}
