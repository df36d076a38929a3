/* The normalisation of keys and queries inside the kernels, in place:
 *
 *     l2:  y = x / sqrt(|x|^2 + 1e-6)        dx = (dy - (dy . y) y) / sqrt(|x|^2 + 1e-6)
 *     sum: y = x / sum(x)                    dx = (dy - dy . y) / sum(x), the scalar taken from every component
 *          y = 0                             dx = 0                           where all of x is 0
 *
 * A map may give a token features that are all 0: DPFP of alternating signs, FAVOR+ that has underflowed. Such a key
 * writes nothing and such a query reads 0. Subnormal numbers count as 0.
 *
 * Derived in docs/mathematics/rules.md. */
#ifndef FWM_KERNELS_RULES_QK_NORM_H
#define FWM_KERNELS_RULES_QK_NORM_H

#include "api/kernels.h"
#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"

static inline bool all_zero(size_t n, const real *x)
{
    for (size_t i = 0; i < n; i++)
        if (!(FWM_FABS(x[i]) < FWM_SMALLEST_NORMAL))
            return false;
    return true;
}

/* A sum of 0 is rare: only then is the row searched for other numbers than 0. */
static inline real qk_norm_of_sum(real total, size_t ld, const real *x)
{
    return FWM_FABS(total) < FWM_SMALLEST_NORMAL * (real)ld && all_zero(ld, x) ? 0 : 1 / total;
}

/* The factor of a row. */
static inline real qk_norm_factor(FwmNorm norm, size_t ld, const real *x)
{
    return norm == FWM_L2_NORM ? 1 / FWM_SQRT(dot(ld, x, x) + (real)1e-6) : qk_norm_of_sum(sum(ld, x), ld, x);
}

/* From the sums of squares of FWM_LANES rows, in place. */
static inline void l2_factors(real *factors)
{
    for (size_t t = 0; t < FWM_LANES; t++)
        factors[t] = 1 / FWM_SQRT(factors[t] + (real)1e-6);
}

/* The factors of n rows, at most FWM_LANES of them, rows of ld numbers `stride` apart. */
static inline void qk_norm_factors(FwmNorm norm, size_t n, size_t ld, const real *x, size_t stride, real *factors)
{
    vec sums[FWM_LANES];
    for (size_t t = 0; t < FWM_LANES; t++) {
        vec sum = {0};
        for (size_t i = 0; i < ld && t < n; i += FWM_LANES) {
            const vec row = vec_load(x + t * stride + i);
            sum += norm == FWM_L2_NORM ? row * row : row;
        }
        sums[t] = sum;
    }
    vec_store(factors, vec_sums(sums));
    if (norm == FWM_L2_NORM)
        l2_factors(factors);
    for (size_t t = 0; t < n && norm == FWM_SUM_NORM; t++)
        factors[t] = qk_norm_of_sum(factors[t], ld, x + t * stride);
}

/* x = a y of n rows of ld numbers, `stride` apart. applied: the numbers that each row is multiplied by; NULL if not
 * wanted. */
static inline void qk_norm_forward(FwmNorm norm, real a, size_t n, size_t ld, real *x, size_t stride, real *applied)
{
    for (size_t t = 0; t < n && applied && norm == FWM_NO_NORM; t++)
        applied[t] = a;
    if (norm == FWM_NO_NORM && a == 1)
        return;
    for (size_t t0 = 0; t0 < n; t0 += FWM_LANES) {
        const size_t rows = fwm_min(FWM_LANES, n - t0);
        real factors[FWM_LANES];
        if (n == 1 && norm != FWM_NO_NORM)
            factors[0] = qk_norm_factor(norm, ld, x);
        else if (norm != FWM_NO_NORM)
            qk_norm_factors(norm, rows, ld, x + t0 * stride, stride, factors);
        for (size_t t = 0; t < rows; t++) {
            real *row = x + (t0 + t) * stride;
            const real by = norm == FWM_NO_NORM ? a : a * factors[t];
            scale(ld, by, row, row);
            if (applied)
                applied[t0 + t] = by;
        }
    }
}

/* dx of n rows of ld numbers, in place of dy, from what the forward left: y, and the factors that x was multiplied by.
 *
 *     l2:  f = a / sqrt(|x|^2 + 1e-6), y = f x,    dx = f (dy - (dy . y / a^2) y)
 *     sum: f = a / sum(x), y = f x,                dx = f (dy - dy . y / a)
 *
 * y, factors and dx lie as they did there. What dy holds beyond K is ignored. */
static inline void qk_norm_backward(FwmNorm norm, real a, size_t n, size_t K, size_t ld, const real *y,
                                    const real *factors, size_t stride, real *dx)
{
    for (size_t t = 0; t < n && norm == FWM_NO_NORM && a != 1; t++)
        scale(ld, a, dx + t * stride, dx + t * stride);
    for (size_t t0 = 0; t0 < n && norm != FWM_NO_NORM; t0 += FWM_LANES) {
        const size_t rows = fwm_min(FWM_LANES, n - t0);
        real along[FWM_LANES], *row = dx + t0 * stride;
        for (size_t t = 0; t < rows; t++)
            for (size_t i = K; i < ld; i++)
                row[t * stride + i] = 0;
        dots(rows, ld, row, y + t0 * stride, stride, along);
        for (size_t t = 0; t < rows; t++, row += stride) {
            const real share = a == 0 ? 0 : norm == FWM_L2_NORM ? along[t] / a / a : along[t] / a;
            for (size_t i = 0; i < ld; i += FWM_LANES) {
                const vec taken = norm == FWM_L2_NORM ? share * vec_load(y + (t0 + t) * stride + i) : (vec){0} + share;
                vec_store(row + i, factors[t0 + t] * (vec_load(row + i) - taken));
            }
        }
    }
}

#endif
