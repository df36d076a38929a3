/* silu(z) = z s and its derivative s (1 + z (1 - s)) with s = 1 / (1 + exp(-z)), for the convolution's vectors: cheaper
 * than vmath.h's logistic function, because one more rounding of exp is little beside those of the sum and the
 * division.
 *
 * exp(x) = 2^n exp(r) as in vmath.h, without the correction of r, and with 2^n as one factor, which is infinite from n
 * = 128 (1024) on: then s = 0, for z below -88.3 (-709.4), where z s is less than 32 (260) times the smallest normal
 * number. Within 2.5 ulp otherwise; NaN comes through z.
 *
 * See docs/mathematics/causal_conv1d.md. */
#ifndef FWM_KERNELS_CONVOLUTION_SILU_H
#define FWM_KERNELS_CONVOLUTION_SILU_H

#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"

#if FWM_REAL_IS_DOUBLE
typedef uint64_t vec_bits __attribute__((vector_size(FWM_VECTOR_BYTES)));
#define SILU_SMALLEST (-708.0) /* 2^n is normal */
#define SILU_LARGEST 710.0     /* n = 1024 */
#else
typedef uint32_t vec_bits __attribute__((vector_size(FWM_VECTOR_BYTES)));
#define SILU_SMALLEST (-87.0f)
#define SILU_LARGEST 89.0f /* n = 128 */
#endif

/* 1 + exp(-z) */
static inline vec silu_divisor(vec z)
{
    const vec smallest = (vec){0} + SILU_SMALLEST, largest = (vec){0} + SILU_LARGEST;
    const vec x = vec_min(largest, vec_max(smallest, -z));
    const real rounder = FWM_ROUNDER + FWM_EXPONENT_BIAS; /* n + bias is in the lowest bits of the sum with it */
    const vec shifted = x * (real)1.44269504088896340736 + rounder, n = shifted - rounder;
    const vec r = (x - n * FWM_LN2_HIGH) - n * FWM_LN2_LOW;
    vec q;
    FWM_EXPM1_SERIES(q, r);
    q = (q * r + 1) * r + 1;
    return 1 + q * (vec)((vec_bits)shifted << FWM_MANTISSA_BITS);
}

static inline vec silu(vec z)
{
    return z / silu_divisor(z);
}

static inline vec silu_slope(vec z)
{
    const vec s = 1 / silu_divisor(z);
    return s * (1 + z * (1 - s));
}

#endif
