/* The normalisation of keys and queries inside the kernels, row by row, in place:
 *
 *     l2:  y = x / sqrt(|x|^2 + 1e-6)        dx = (dy - (dy . y) y) / sqrt(|x|^2 + 1e-6)
 *     sum: y = x / sum(x)                    dx = (dy - dy . y) / sum(x), the scalar taken from every component
 *          y = 0                             dx = 0                           where all of x is 0
 *
 * A map may give a token no features: DPFP of alternating signs, FAVOR+ that has underflowed. Such a key writes nothing
 * and such a query reads 0. Subnormal numbers count as 0. Nothing is saved but the inputs. */
#ifndef FWM_KERNELS_RULES_QK_NORM_H
#define FWM_KERNELS_RULES_QK_NORM_H

#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"
#include "api/kernels.h"

static inline bool all_zero(size_t n, const real *x)
{
    for (size_t i = 0; i < n; i++)
        if (!(FWM_FABS(x[i]) < FWM_SMALLEST_NORMAL))
            return false;
    return true;
}

/* What a row is multiplied by. A sum that is 0 is rare: the row is looked through only then. */
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

/* dx of one row, in place of dy; x as it was given, padded with zeros. What stands in dy behind K is ignored. */
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
