/* exp, tanh and the logistic function, written for one number and without branches, so that the compiler vectorises
 * loops over them on every instruction set.
 *
 * exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln(2) / 2, by the Taylor polynomial of expm1(r), whose first
 * omitted term is below a tenth of an ulp. Errors over the whole range (tests/operations/test_feature_maps.py): exp 1
 * ulp, also where the result is subnormal (only the last multiplication rounds it); tanh 2 ulp; the logistic
 * function 2.5 ulp, and 0 where it would be subnormal.
 *
 * See docs/mathematics/exp_tanh_logistic.md. */
#ifndef FWM_KERNELS_BASE_VMATH_H
#define FWM_KERNELS_BASE_VMATH_H

#include <math.h>
#include <string.h>

#include "kernels/base/real.h"

#if FWM_REAL_IS_DOUBLE
typedef int64_t real_bits;
#define FWM_MANTISSA_BITS 52
#define FWM_EXPONENT_BIAS 1023
#define FWM_ROUNDER 6755399441055744.0       /* 1.5 * 2^52: adding it rounds to an integer */
#define FWM_LN2_HIGH 0.693147180369123816490 /* the leading bits of ln 2: n * this is exact */
#define FWM_LN2_LOW 1.90821492927058770002e-10
#define FWM_EXP_LARGEST 709.9   /* beyond, exp is inf: 2^n is applied in two factors, for n up to 1025 */
#define FWM_EXP_SMALLEST -746.0 /* below, exp is 0 */
#define FWM_EXP_FLUSHED -708.5  /* below, exp is subnormal or 0 */
#define FWM_TANH_SATURATED 20.0 /* beyond, tanh is 1 */
#define FWM_SMALLEST_NORMAL 2.2250738585072014e-308
#define FWM_SQRT sqrt
#define FWM_FABS fabs
#else
typedef int32_t real_bits;
#define FWM_MANTISSA_BITS 23
#define FWM_EXPONENT_BIAS 127
#define FWM_ROUNDER 12582912.0f /* 1.5 * 2^23 */
#define FWM_LN2_HIGH 0.693359375f
#define FWM_LN2_LOW -2.12194440e-4f
#define FWM_EXP_LARGEST 89.0f
#define FWM_EXP_SMALLEST -105.0f
#define FWM_EXP_FLUSHED -87.5f
#define FWM_TANH_SATURATED 10.0f
#define FWM_SMALLEST_NORMAL 1.17549435e-38f
#define FWM_SQRT sqrtf
#define FWM_FABS fabsf
#endif

/* 2^n for an n in the normal range. */
static inline real power_of_two(real_bits n)
{
    real_bits bits = (real_bits)((n + FWM_EXPONENT_BIAS) << FWM_MANTISSA_BITS);
    real power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* expm1(r) = r + r^2 q: q by Horner's rule, for a number or a vector r. */
#if FWM_REAL_IS_DOUBLE
#define FWM_EXPM1_SERIES(q, r)                                                                                         \
    do {                                                                                                               \
        q = (real)(1.0 / 6227020800.0) * r + (real)(1.0 / 479001600.0);                                                \
        q = q * r + (real)(1.0 / 39916800.0);                                                                          \
        q = q * r + (real)(1.0 / 3628800.0);                                                                           \
        q = q * r + (real)(1.0 / 362880.0);                                                                            \
        q = q * r + (real)(1.0 / 40320.0);                                                                             \
        q = q * r + (real)(1.0 / 5040.0);                                                                              \
        q = q * r + (real)(1.0 / 720.0);                                                                               \
        q = q * r + (real)(1.0 / 120.0);                                                                               \
        q = q * r + (real)(1.0 / 24.0);                                                                                \
        q = q * r + (real)(1.0 / 6.0);                                                                                 \
        q = q * r + (real)0.5;                                                                                         \
    } while (0)
#else
#define FWM_EXPM1_SERIES(q, r)                                                                                         \
    do {                                                                                                               \
        q = (1.0f / 5040.0f) * r + (real)(1.0 / 720.0);                                                                \
        q = q * r + (real)(1.0 / 120.0);                                                                               \
        q = q * r + (real)(1.0 / 24.0);                                                                                \
        q = q * r + (real)(1.0 / 6.0);                                                                                 \
        q = q * r + (real)0.5;                                                                                         \
    } while (0)
#endif

/* n = round(x / ln 2); returns expm1(x - n ln 2). */
static inline real expm1_reduced(real x, real_bits *n)
{
    const real shifted = x * (real)1.44269504088896340736 + FWM_ROUNDER;
    real_bits bits, zero;
    const real rounder = FWM_ROUNDER;
    memcpy(&bits, &shifted, sizeof bits);
    memcpy(&zero, &rounder, sizeof zero);
    *n = bits - zero;
    const real whole = shifted - FWM_ROUNDER;
    const real high = x - whole * FWM_LN2_HIGH;
    const real r = high - whole * FWM_LN2_LOW;
    const real lost = (high - r) - whole * FWM_LN2_LOW; /* in the rounding of r */
    real q;
    FWM_EXPM1_SERIES(q, r);
    return r + (r * r * q + lost);
}

/* exp(x) = 2^n (1 + e); returns e, which is finite, because x is clamped to the range of exp. */
static inline real exp_reduced(real x, real_bits *n)
{
    const real inside = x < FWM_EXP_LARGEST ? x : FWM_EXP_LARGEST;
    return expm1_reduced(inside > FWM_EXP_SMALLEST ? inside : FWM_EXP_SMALLEST, n);
}

/* 2^n y, in two factors, because 2^n alone may be out of range. */
static inline real times_power_of_two(real y, real_bits n)
{
    const real_bits half = n >> 1;
    return y * power_of_two(half) * power_of_two(n - half);
}

static inline real exp_real(real x)
{
    real_bits n;
    const real e = exp_reduced(x, &n), y = times_power_of_two(1 + e, n);
    return x != x ? x : y;
}

/* exp(x) in two parts: 1 + rest where it is near 1, and rest elsewhere. Returns a mask, all bits set in the first case
 * and none in the second, so that y exp(x) = rest y + (y & mask), where the second term is exact. */
static inline real_bits exp_in_two(real x, real *rest)
{
    real_bits n;
    const real e = exp_reduced(x, &n), y = times_power_of_two(1 + e, n);
    *rest = x != x ? x : n == 0 ? e : y;
    return n == 0 ? -1 : 0;
}

/* exp(x) as one factor of a running product. *lost is the relative rounding error of the factors so far: it is carried
 * into this factor and replaced by the error that remains. So the product of any number of consecutive factors is as
 * accurate as a single one. */
static inline real exp_of_product(real x, real *lost)
{
    real_bits n;
    const real e = exp_reduced(x, &n) + *lost, high = 1 + e;
    *lost = e - (high - 1);
    return x != x ? x : times_power_of_two(high, n);
}

/* exp(x) in double; where |x| is small, with the relative error of exp_real times |x|. */
static inline double exp_in_double(real x)
{
#if FWM_REAL_IS_DOUBLE
    return exp_real(x);
#else
    real_bits n;
    const double e = exp_reduced(x, &n);
    const real_bits half = n >> 1;
    return x != x ? x : (1 + e) * power_of_two(half) * power_of_two(n - half);
#endif
}

/* tanh |x| = e / (e + 2) with e = expm1(2 |x|). Where e is small, the rounding error of e + 2 matters: the quotient is
 * corrected by that error times an approximation of 1 / (e + 2). */
static inline real tanh_real(real x)
{
    real_bits n;
    const real size = FWM_FABS(x);
    const real inside = size < FWM_TANH_SATURATED ? size : FWM_TANH_SATURATED;
    const real reduced = expm1_reduced(2 * inside, &n);
    const real power = power_of_two(n);
    const real e = power * reduced + (power - 1);
    const real divisor = e + 2, quotient = e / divisor;
    const real lost = (2 - divisor) + e;
    const real corrected = quotient - quotient * lost * ((real)0.5 - (real)0.2 * e);
    const real y = e < (real)0.75 ? corrected : quotient;
    const real with_sign = x < 0 ? -y : y;
    return x == 0 || x != x ? x : with_sign;
}

/* 1 / (1 + exp(-x)) */
static inline real logistic(real x)
{
    return 1 / (1 + exp_real(-x));
}

#endif
