/* The gated RMS norm, backward. Forward, for each number of a row x with its gate z:
 *
 *     n = r x with r = 1 / sqrt(mean(x^2) + eps),   y = weight n a(z)
 *
 * where a(z) = s, or z s (SiLU), with s = 1 / (1 + exp(-z)). Nothing is saved; r and s are computed again. With s' = s (1 - s):
 *
 *     dweight = sum of dy n a over the rows,   dn = dy weight a,   dz = dy weight n a',   a' = s', or s (1 + z (1 - s))
 *
 * x reaches n by itself and by r, dr/dx_i = -r^3 x_i / D = -r^2 n_i / D, so that sum_j dn_j x_j dr/dx_i = -r n_i sum_j dn_j n_j / D:
 *
 *     dx = r (dn - n mean(dn n))
 *
 * A row is gone through once for r, once for everything else, with dn left in dx, and once for dx. Each block of rows leaves its
 * dweight, and the blocks' are added in their order: the bits do not depend on the number of threads. */
#include <string.h>

#include "kernels/norm/norm.h"
#include "runtime/subnormals.h"
#include "runtime/threads.h"

typedef struct {
    const FwmGatedNorm *c;
    real *sums; /* (blocks, D): the blocks' dweight */
} Backward;

/* A row of the arrays. */
typedef struct {
    const real *x, *z, *dy;
    real *dx, *dz;
} Row;

static inline Row row_at(const FwmGatedNorm *c, size_t row)
{
    const size_t at = row * c->D;
    return (Row){(const real *)c->x + at, (const real *)c->gate + at, (const real *)c->dy + at, (real *)c->dx + at, (real *)c->dgate + at};
}

/* dz, dn and the row's part of dweight; returns sum(dn n). */
static inline __attribute__((always_inline)) real through_gate(bool silu, size_t D, real r, Row row, const real *restrict weight,
                                                               real *restrict dweight)
{
    const real *restrict x = row.x, *restrict z = row.z, *restrict dy = row.dy;
    real *restrict dn = row.dx, *restrict dz = row.dz, total = 0;
#pragma omp simd reduction(+ : total)
    for (size_t i = 0; i < D; i++) {
        const real s = logistic(z[i]), a = silu ? z[i] * s : s, slope = silu ? s * (1 + z[i] * (1 - s)) : s * (1 - s);
        const real n = r * x[i], dy_n = dy[i] * n;
        dweight[i] += dy_n * a;
        dz[i] = dy_n * weight[i] * slope;
        dn[i] = dy[i] * weight[i] * a;
        total += dn[i] * n;
    }
    return total;
}

static void back_row(const FwmGatedNorm *c, Row row, real *restrict dweight)
{
    const size_t D = c->D;
    const real r = reciprocal_rms(c, row.x);
    const real total = c->silu ? through_gate(true, D, r, row, c->weight, dweight) : through_gate(false, D, r, row, c->weight, dweight);
    const real mean = total / (real)D, *restrict x = row.x;
    real *restrict dx = row.dx;
#pragma omp simd
    for (size_t i = 0; i < D; i++)
        dx[i] = r * (dx[i] - mean * (r * x[i]));
}

static void block_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Backward *b = context;
    const FwmGatedNorm *c = b->c;
    const size_t first = index * rows_in_block(c), last = fwm_min(first + rows_in_block(c), c->rows);
    real *dweight = b->sums + index * c->D;
    memset(dweight, 0, c->D * sizeof(real));
    const FwmSubnormals mode = fwm_subnormals(true);
    for (size_t row = first; row < last; row++)
        back_row(c, row_at(c, row), dweight);
    fwm_restore_subnormals(mode);
}

static void add_blocks(const Backward *b)
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

size_t norm_backward_scratch(const FwmGatedNorm *c)
{
    return row_blocks(c) * c->D * sizeof(real);
}

void norm_backward(const FwmGatedNorm *c, int threads, void *scratch)
{
    Backward b = {.c = c, .sums = scratch};
    fwm_parallel_for(threads_for_rows(c, threads), row_blocks(c), block_task, &b);
    add_blocks(&b);
}
