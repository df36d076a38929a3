/* Vectors of `real` as wide as the variant's registers, and the few row operations that the kernels are built from.
 * Rows have a length that is a multiple of FWM_PAD, unless said otherwise. No vector type is an argument or a result of
 * a function that is not inlined. */
#ifndef FWM_KERNELS_BASE_VECTOR_H
#define FWM_KERNELS_BASE_VECTOR_H

#include <string.h>
#ifdef __SSE2__
#include <immintrin.h>
#endif

#include "kernels/base/real.h"

#define FWM_LANES (FWM_VECTOR_BYTES / FWM_REAL_BYTES)

enum { CACHE_LINE = 64 }; /* bytes */

typedef real vec __attribute__((vector_size(FWM_VECTOR_BYTES)));
#if FWM_REAL_IS_DOUBLE
typedef int64_t lane_number;
#else
typedef int32_t lane_number;
#endif
typedef lane_number vec_mask __attribute__((vector_size(FWM_VECTOR_BYTES))); /* of a comparison: -1 or 0 in a lane */
typedef real vec_in_memory __attribute__((vector_size(FWM_VECTOR_BYTES), aligned(FWM_REAL_BYTES), may_alias));

static inline vec vec_load(const real *p)
{
    return *(const vec_in_memory *)p;
}

static inline void vec_store(real *p, vec x)
{
    *(vec_in_memory *)p = x;
}

static inline vec vec_select(vec_mask mask, vec where_set, vec elsewhere)
{
    return (vec)(((vec_mask)where_set & mask) | ((vec_mask)elsewhere & ~mask));
}

/* x, kept in a register. Otherwise compilers load it from memory again for each operation that uses it. */
static inline vec vec_in_register(vec x)
{
#if defined(__x86_64__)
    __asm__("" : "+x"(x));
#endif
    return x;
}

/* x where all bits of the mask are set, 0 where none is */
static inline vec vec_masked(vec x, lane_number mask)
{
    return (vec)((vec_mask)x & mask);
}

/* x86's max and min return the second operand if one of the two is NaN: with x second, max(x, 0) and min(x, 0) keep a
 * NaN. They are written as intrinsics, because GCC compiles vec_select here to a comparison and a masked move, where
 * one instruction is enough. */
#if defined(__AVX512F__) && FWM_VECTOR_BYTES == 64
#if FWM_REAL_IS_DOUBLE
#define FWM_X86(which, x, y) ((vec)_mm512_##which##_pd((__m512d)(x), (__m512d)(y)))
#define FWM_X86_CLIP(which, x) FWM_X86(which, _mm512_setzero_pd(), x)
#else
#define FWM_X86(which, x, y) ((vec)_mm512_##which##_ps((__m512)(x), (__m512)(y)))
#define FWM_X86_CLIP(which, x) FWM_X86(which, _mm512_setzero_ps(), x)
#endif
#endif

/* x where x > y, else y; so y where either of them is NaN. */
static inline vec vec_max(vec x, vec y)
{
#ifdef FWM_X86
    return FWM_X86(max, x, y);
#else
    return vec_select(x > y, x, y);
#endif
}

/* x where x < y, else y; so y where either of them is NaN. */
static inline vec vec_min(vec x, vec y)
{
#ifdef FWM_X86
    return FWM_X86(min, x, y);
#else
    return vec_select(x < y, x, y);
#endif
}

/* max(x, 0); NaN stays NaN. */
static inline vec vec_positive(vec x)
{
#ifdef FWM_X86_CLIP
    return FWM_X86_CLIP(max, x);
#else
    const vec zero = {0};
    return vec_select(x < 0, zero, x);
#endif
}

/* min(x, 0); NaN stays NaN. */
static inline vec vec_negative(vec x)
{
#ifdef FWM_X86_CLIP
    return FWM_X86_CLIP(min, x);
#else
    const vec zero = {0};
    return vec_select(x > 0, zero, x);
#endif
}

/* up where x > 0, down where x < 0, 0 elsewhere; as intrinsics, because GCC makes logic of four operations of it. */
static inline vec vec_by_sign(vec x, vec up, vec down)
{
#if defined(FWM_X86) && FWM_REAL_IS_DOUBLE
    const __m512d zero = _mm512_setzero_pd();
    const __mmask8 above = _mm512_cmp_pd_mask(x, zero, _CMP_GT_OQ), below = _mm512_cmp_pd_mask(x, zero, _CMP_LT_OQ);
    return (vec)_mm512_mask_mov_pd(_mm512_maskz_mov_pd(above, up), below, down);
#elif defined(FWM_X86)
    const __m512 zero = _mm512_setzero_ps();
    const __mmask16 above = _mm512_cmp_ps_mask(x, zero, _CMP_GT_OQ), below = _mm512_cmp_ps_mask(x, zero, _CMP_LT_OQ);
    return (vec)_mm512_mask_mov_ps(_mm512_maskz_mov_ps(above, up), below, down);
#else
    const vec zero = {0};
    return vec_select(x > 0, up, vec_select(x < 0, down, zero));
#endif
}

/* The first n lanes, n < FWM_LANES, from memory and to it. The others are 0; in memory they stay. As intrinsics,
 * because otherwise they go through the stack by calls of memcpy. */
static inline vec vec_load_first(size_t n, const real *p)
{
#if defined(FWM_X86) && FWM_REAL_IS_DOUBLE
    return (vec)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#elif defined(FWM_X86)
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
    vec x = {0};
    memcpy(&x, p, n * sizeof(real));
    return x;
#endif
}

static inline void vec_store_first(size_t n, real *p, vec x)
{
#if defined(FWM_X86) && FWM_REAL_IS_DOUBLE
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)x);
#elif defined(FWM_X86)
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)x);
#else
    memcpy(p, &x, n * sizeof(real));
#endif
}

/* A store past the caches, where there is one: what it overwrites is not read, and nothing leaves the caches for it. p
 * is aligned to FWM_VECTOR_BYTES, and whole cache lines are written. Other threads see it after vec_stream_end. */
static inline void vec_stream(real *p, vec x)
{
#if defined(__AVX512F__) && FWM_VECTOR_BYTES == 64
    _mm512_stream_ps((float *)p, (__m512)x);
#elif defined(__AVX__) && FWM_VECTOR_BYTES == 32
    _mm256_stream_ps((float *)p, (__m256)x);
#elif defined(__SSE2__) && FWM_VECTOR_BYTES == 16
    _mm_stream_ps((float *)p, (__m128)x);
#else
    vec_store(p, x);
#endif
}

static inline void vec_stream_end(void)
{
#ifdef __SSE2__
    _mm_sfence();
#endif
}

/* 0, 1, 2, .. */
static inline vec_mask vec_lane_numbers(void)
{
    vec_mask numbers;
    for (int i = 0; i < FWM_LANES; i++)
        numbers[i] = i;
    return numbers;
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FWM_HAVE_SHUFFLE 1
#endif
#endif

/* The sum of the lanes, in every lane: one half of the lanes is added to the other, then a quarter, and so on. */
static inline vec vec_total(vec x)
{
#if FWM_HAVE_SHUFFLE && FWM_LANES == 16
    x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    x += __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif FWM_HAVE_SHUFFLE && FWM_LANES == 8
    x += __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
    x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
    x += __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
#elif FWM_HAVE_SHUFFLE && FWM_LANES == 4
    x += __builtin_shufflevector(x, x, 2, 3, 0, 1);
    x += __builtin_shufflevector(x, x, 1, 0, 3, 2);
#else
    for (int half = FWM_LANES / 2; half > 0; half /= 2) {
        const vec before = x;
        for (int i = 0; i < FWM_LANES; i++)
            x[i] = before[i] + before[i ^ half];
    }
#endif
    return x;
}

static inline real vec_sum(vec x)
{
    return vec_total(x)[0];
}

#if FWM_HAVE_SHUFFLE
/* Lane j of two vectors of which one gives the lanes with bit s and the other those without, as an index into the lanes
 * of both: UPPER pairs the lanes without bit s, LOWER those with it. */
#define FWM_UPPER(j, s) ((j) & (s) ? FWM_LANES + (j) - (s) : (j))
#define FWM_LOWER(j, s) ((j) & (s) ? FWM_LANES + (j) : (j) + (s))
#if FWM_LANES == 16
#define FWM_ALL_LANES(F, s)                                                                                            \
    F(0, s), F(1, s), F(2, s), F(3, s), F(4, s), F(5, s), F(6, s), F(7, s), F(8, s), F(9, s), F(10, s), F(11, s),      \
        F(12, s), F(13, s), F(14, s), F(15, s)
#elif FWM_LANES == 8
#define FWM_ALL_LANES(F, s) F(0, s), F(1, s), F(2, s), F(3, s), F(4, s), F(5, s), F(6, s), F(7, s)
#elif FWM_LANES == 4
#define FWM_ALL_LANES(F, s) F(0, s), F(1, s), F(2, s), F(3, s)
#else
#define FWM_ALL_LANES(F, s) F(0, s), F(1, s)
#endif
#define FWM_SHUFFLE(F, x, y, s) __builtin_shufflevector(x, y, FWM_ALL_LANES(F, s))
#endif

/* The sums of FWM_LANES vectors, that of vector j in lane j: with stage s half of the vectors are left, whose lanes
 * with bit s belong to the vector that was s further on. */
ALWAYS_INLINE vec vec_sums(const vec *x)
{
#if FWM_HAVE_SHUFFLE
    vec y[FWM_LANES];
#pragma GCC unroll 16
    for (int i = 0; i < FWM_LANES; i++)
        y[i] = x[i];
#define FWM_STAGE(s)                                                                                                   \
    _Pragma("GCC unroll 16") for (int i = 0; i < (s); i++) y[i] =                                                      \
        FWM_SHUFFLE(FWM_UPPER, y[i], y[i + (s)], s) + FWM_SHUFFLE(FWM_LOWER, y[i], y[i + (s)], s);
#if FWM_LANES > 8
    FWM_STAGE(8)
#endif
#if FWM_LANES > 4
    FWM_STAGE(4)
#endif
#if FWM_LANES > 2
    FWM_STAGE(2)
#endif
    FWM_STAGE(1)
#undef FWM_STAGE
    return y[0];
#else
    vec sums;
    for (int i = 0; i < FWM_LANES; i++)
        sums[i] = vec_sum(x[i]);
    return sums;
#endif
}

/* x . y, in four partial sums: each addition of a single chain would wait for the one before. */
static inline real dot(size_t n, const real *restrict x, const real *restrict y)
{
    vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    size_t i = 0;
    for (; i + 4 * FWM_LANES <= n; i += 4 * FWM_LANES) {
        s0 += vec_load(x + i) * vec_load(y + i);
        s1 += vec_load(x + i + FWM_LANES) * vec_load(y + i + FWM_LANES);
        s2 += vec_load(x + i + 2 * FWM_LANES) * vec_load(y + i + 2 * FWM_LANES);
        s3 += vec_load(x + i + 3 * FWM_LANES) * vec_load(y + i + 3 * FWM_LANES);
    }
    for (; i < n; i += FWM_LANES)
        s0 += vec_load(x + i) * vec_load(y + i);
    return vec_sum((s0 + s1) + (s2 + s3));
}

/* out_t = x_t . y_t for m rows, at most FWM_LANES, `stride` apart; out has FWM_LANES numbers. The sums over the lanes
 * are made for all rows at once. */
static inline void dots(size_t m, size_t n, const real *x, const real *y, size_t stride, real *out)
{
    vec sums[FWM_LANES];
    if (m == 1) {
        out[0] = dot(n, x, y);
        return;
    }
    for (size_t t = 0; t < FWM_LANES; t++) {
        vec sum = {0};
        for (size_t i = 0; i < n && t < m; i += FWM_LANES)
            sum += vec_load(x + t * stride + i) * vec_load(y + t * stride + i);
        sums[t] = sum;
    }
    vec_store(out, vec_sums(sums));
}

static inline real sum(size_t n, const real *x)
{
    vec s0 = {0}, s1 = {0};
    size_t i = 0;
    for (; i + 2 * FWM_LANES <= n; i += 2 * FWM_LANES) {
        s0 += vec_load(x + i);
        s1 += vec_load(x + i + FWM_LANES);
    }
    for (; i < n; i += FWM_LANES)
        s0 += vec_load(x + i);
    return vec_sum(s0 + s1);
}

/* y = x, rows of any length. For short rows a call of memcpy, which compilers make of such a loop unless a number is
 * seen to pass a register, costs more than the copy. The last vector may overlap the one before. */
static inline void copy(size_t n, const real *restrict x, real *restrict y)
{
    size_t i = 0;
    for (; i + FWM_LANES <= n; i += FWM_LANES)
        vec_store(y + i, vec_in_register(vec_load(x + i)));
    if (i == n)
        return;
    if (n > FWM_LANES)
        vec_store(y + n - FWM_LANES, vec_load(x + n - FWM_LANES));
    else
        for (; i < n; i++)
            y[i] = x[i];
}

/* x (ld numbers) = from (n numbers), padded with zeros; all zeros if from is NULL */
static inline void load_row(size_t n, size_t ld, const real *restrict from, real *restrict x)
{
    const size_t there = from ? n : 0;
    copy(there, from, x);
    for (size_t i = there; i < ld; i++)
        x[i] = 0;
}

/* n rows from a packed array (rows of `packed` numbers) to a padded one (rows of ld), and back. */
static inline void pad_rows(size_t n, const real *in, size_t packed, real *out, size_t ld)
{
    for (size_t i = 0; i < n; i++)
        load_row(packed, ld, in + i * packed, out + i * ld);
}

static inline void unpad_rows(size_t n, const real *in, size_t ld, real *out, size_t packed)
{
    for (size_t i = 0; i < n; i++)
        copy(packed, in + i * ld, out + i * packed);
}

/* out = a x; in place if out == x */
static inline void scale(size_t n, real a, const real *x, real *out)
{
    for (size_t i = 0; i < n; i += FWM_LANES)
        vec_store(out + i, a * vec_load(x + i));
}

/* out = x y, element by element */
static inline void multiply_row(size_t n, const real *x, const real *y, real *out)
{
    for (size_t i = 0; i < n; i += FWM_LANES)
        vec_store(out + i, vec_load(x + i) * vec_load(y + i));
}

/* y += a x */
static inline void add_scaled(size_t n, real a, const real *restrict x, real *restrict y)
{
    for (size_t i = 0; i < n; i += FWM_LANES)
        vec_store(y + i, vec_load(y + i) + a * vec_load(x + i));
}

/* y += x */
static inline void add(size_t n, const real *restrict x, real *restrict y)
{
    for (size_t i = 0; i < n; i += FWM_LANES)
        vec_store(y + i, vec_load(y + i) + vec_load(x + i));
}

#endif
