/* 2^x of a vector, for attention's weights: cheaper than vmath.h's exp, because its argument is a score below its
 * reference.
 *
 * 2^x = 2^n 2^r, n = round(x), |r| <= 1/2; 2^r by a polynomial whose relative error (minimax) is 2e-9 in float32 and
 * 3e-18 in float64. n comes out of an addition that leaves n + bias in the lowest bits of the sum, from where a shift
 * makes 2^n. Within 1 ulp (1.3 without fused multiply-adds); below the smallest normal number a result may be 0, and
 * below 2^-127 (2^-1023) it is; NaN stays NaN. x must be below 128 (1024).
 *
 * See docs/mathematics/softmax_attention.md. */
#ifndef FWM_KERNELS_ATTENTION_EXP2_H
#define FWM_KERNELS_ATTENTION_EXP2_H

#include "kernels/base/vector.h"

#if FWM_REAL_IS_DOUBLE
typedef uint64_t vec_bits __attribute__((vector_size(FWM_VECTOR_BYTES)));
#define EXP2_MANTISSA_BITS 52
#define EXP2_ROUNDER (6755399441055744.0 + 1023) /* 1.5 * 2^52 + bias */
#define EXP2_SMALLEST (-1023.0)
#else
typedef uint32_t vec_bits __attribute__((vector_size(FWM_VECTOR_BYTES)));
#define EXP2_MANTISSA_BITS 23
#define EXP2_ROUNDER (12582912.0f + 127) /* 1.5 * 2^23 + bias */
#define EXP2_SMALLEST (-127.0f)
#endif

#define LOG2_E 1.44269504088896340736
#define LN_2 0.69314718055994530942

static inline vec vec_exp2(vec x)
{
    const vec smallest = (vec){0} + EXP2_SMALLEST;
    x = vec_max(smallest, x);
    const vec shifted = x + EXP2_ROUNDER;
    const vec r = x - (shifted - EXP2_ROUNDER);
#if FWM_REAL_IS_DOUBLE
    vec y = r * 4.4352827069572771511e-10 + 7.0741056135081427963e-9;
    y = y * r + 1.0178198021671930844e-7;
    y = y * r + 1.321543308967639918e-6;
    y = y * r + 1.5252733489988525649e-5;
    y = y * r + 1.5403530462494514432e-4;
    y = y * r + 1.3333558146789921722e-3;
    y = y * r + 9.6181291075883352443e-3;
    y = y * r + 5.5504108664819921605e-2;
    y = y * r + 0.24022650695910156204;
    y = y * r + 0.69314718055994533046;
#else
    vec y = r * 1.5345812161311629759e-4f + 1.3399931177239737967e-3f;
    y = y * r + 9.6184889563311816196e-3f;
    y = y * r + 5.550328777105324799e-2f;
    y = y * r + 0.24022646890645520696f;
    y = y * r + 0.69314720573719575134f;
#endif
    y = y * r + 1;
    return y * (vec)((vec_bits)shifted << EXP2_MANTISSA_BITS);
}

#endif
