/* The normalisation of keys and queries inside the kernels, row by row, in place:
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

/* The factor of a row. A sum of 0 is rare: only then is the row searched for other numbers than 0. */
static inline real qk_norm_factor(FwmNorm norm, size_t ld, const real *x)
{
    if (norm == FWM_L2_NORM)
        return 1 / FWM_SQRT(dot(ld, x, x) + (real)1e-6);
    const real total = sum(ld, x);
    return FWM_FABS(total) < FWM_SMALLEST_NORMAL * (real)ld && all_zero(ld, x) ? 0 : 1 / total;
}

/* x: a row of K numbers, padded with zeros to ld */
static inline void qk_norm_forward(FwmNorm norm, size_t K, size_t ld, real *x)
{
    if (norm == FWM_NO_NORM)
        return;
    const real factor = qk_norm_factor(norm, ld, x);
    for (size_t i = 0; i < K; i++)
        x[i] *= factor;
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
