/* Numbers of 16 bits, read and written: bfloat16, the upper half of a float32, and IEEE's float16.
 *
 * They are converted with integers, which every instruction set has in vectors, and rounded to nearest, ties to even.
 * NaN stays NaN. A bfloat16 below the smallest normal float32 is such a float32, which may count as 0; those of float16
 * are kept. */
#ifndef FWM_KERNELS_BASE_HALF_H
#define FWM_KERNELS_BASE_HALF_H

#include <string.h>

#include "api/kernels.h"
#include "kernels/base/vector.h"

/* Whether the instruction set multiplies numbers in bfloat16, and sums the products in float32. */
#if defined(__AVX512BF16__) && FWM_VECTOR_BYTES == 64 && !FWM_REAL_IS_DOUBLE
#define FWM_BFLOAT16_PRODUCTS 1
#else
#define FWM_BFLOAT16_PRODUCTS 0
#endif

static inline float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float from_bfloat16(uint16_t half)
{
    return float_of((uint32_t)half << 16);
}

static inline uint16_t to_bfloat16(float x)
{
    const uint32_t bits = bits_of(x), rounded = bits + 0x7fff + (bits >> 16 & 1);
    return (uint16_t)(((bits & 0x7fffffff) > 0x7f800000 ? bits | 0x400000 : rounded) >> 16);
}

/* float16 has exponents from -14 to 15, and below them multiples of 2^-24. */
static inline float from_float16(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff, shifted = (rest << 13) + (112u << 23);
    const uint32_t large = rest >= 0x7c00 ? shifted + (112u << 23) : shifted; /* infinity and NaN */
    const uint32_t small = bits_of((float)(int32_t)rest * 0x1p-24f);
    return float_of(sign | (rest < 0x400 ? small : large));
}

static inline uint16_t to_float16(float x)
{
    const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    const uint32_t normal = (rest + 0xfff + (rest >> 13 & 1) - (112u << 23)) >> 13;
    const uint32_t small = bits_of(float_of(rest < 0x38800000 ? rest : 0) + 0.5f) - bits_of(0.5f); /* in 2^-24 */
    const uint32_t finite = rest < 0x38800000 ? small : rest < 0x47800000 ? normal : 0x7c00;
    return (uint16_t)(sign | (rest > 0x7f800000 ? 0x7e00 : finite));
}

/* Number i of an array. */
ALWAYS_INLINE real read_number(FwmNumbers numbers, const void *from, size_t i)
{
    return numbers == FWM_BFLOAT16  ? (real)from_bfloat16(((const uint16_t *)from)[i])
           : numbers == FWM_FLOAT16 ? (real)from_float16(((const uint16_t *)from)[i])
                                    : ((const real *)from)[i];
}

static inline size_t bytes_of_number(FwmNumbers numbers)
{
    return numbers == FWM_REAL ? sizeof(real) : sizeof(uint16_t);
}

/* to = a x of rows of any length, and to = x to. Each loop knows of its numbers how they are stored. */
static inline void scale_numbers(FwmNumbers numbers, size_t n, real a, const void *restrict x, real *restrict to)
{
    if (numbers == FWM_REAL)
        for (size_t i = 0; i < n; i++)
            to[i] = a * read_number(FWM_REAL, x, i);
    else if (numbers == FWM_BFLOAT16)
        for (size_t i = 0; i < n; i++)
            to[i] = a * read_number(FWM_BFLOAT16, x, i);
    else
        for (size_t i = 0; i < n; i++)
            to[i] = a * read_number(FWM_FLOAT16, x, i);
}

static inline void multiply_numbers(FwmNumbers numbers, size_t n, const void *restrict x, real *restrict to)
{
    if (numbers == FWM_REAL)
        for (size_t i = 0; i < n; i++)
            to[i] *= read_number(FWM_REAL, x, i);
    else if (numbers == FWM_BFLOAT16)
        for (size_t i = 0; i < n; i++)
            to[i] *= read_number(FWM_BFLOAT16, x, i);
    else
        for (size_t i = 0; i < n; i++)
            to[i] *= read_number(FWM_FLOAT16, x, i);
}

static inline void read_numbers(FwmNumbers numbers, size_t n, const void *restrict from, real *restrict to)
{
    if (numbers == FWM_REAL)
        copy(n, from, to);
    else
        scale_numbers(numbers, n, 1, from, to);
}

static inline void write_numbers(FwmNumbers numbers, size_t n, const real *restrict from, void *restrict to)
{
    uint16_t *restrict halves = to;
    if (numbers == FWM_REAL)
        copy(n, from, to);
    else if (numbers == FWM_BFLOAT16)
        for (size_t i = 0; i < n; i++)
            halves[i] = to_bfloat16((float)from[i]);
    else
        for (size_t i = 0; i < n; i++)
            halves[i] = to_float16((float)from[i]);
}

#if FWM_BFLOAT16_PRODUCTS
/* In lane j the sum, and x[2j] y[2j] + x[2j + 1] y[2j + 1], of vectors that are pairs of bfloat16; y is one pair. */
static inline vec vec_add_pairs(vec sum, __m512i x, uint32_t y)
{
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)x, (__m512bh)_mm512_set1_epi32((int)y));
}

/* The pairs x[j], y[j], rounded to bfloat16. */
static inline __m512i vec_round_pairs(vec x, vec y)
{
    const __m512i interleaved = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                                 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(interleaved, (__m512i)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x));
}
#endif

#endif
