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

#endif
