/* The normalisation of keys and queries inside the kernels, in place:
 *
 *     l2:  y = x / sqrt(|x|^2 + 1e-6)        dx = (dy - (dy . y) y) / sqrt(|x|^2 + 1e-6)
 *     sum: y = x / sum(x)                    dx = (dy - dy . y) / sum(x), the scalar taken from every component
 *          y = 0                             dx = 0                           where all of x is 0
 *
 * A map may give a token features that are all 0: DPFP of alternating signs, FAVOR+ that has underflowed. Such a key
 * writes nothing and such a query reads 0. Subnormal numbers count as 0. The backward needs only the inputs.
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
        for (size_t t = 0; t < FWM_LANES; t++)
            factors[t] = 1 / FWM_SQRT(factors[t] + (real)1e-6);
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

/* dx of one row, in place of dy; x is the row before the forward, padded with zeros. What dy holds beyond K is
 * ignored. */
static inline void qk_norm_backward(FwmNorm norm, size_t K, size_t ld, const real *x, real *dx)
{
    if (norm == FWM_NO_NORM)
        return;
    for (size_t i = K; i < ld; i++)
        dx[i] = 0;
    const real factor = qk_norm_factor(norm, ld, x), along = factor * dot(ld, dx, x);
    for (size_t i = 0; i < K; i++)
        dx[i] = (dx[i] - along * (norm == FWM_L2_NORM ? factor * x[i] : 1)) * factor;
}

#endif
