/* Logarithm and sine are polynomials in float32, so that the compiler vectorises the loops. CUDA's own differ from the
 * exact functions, and so from these, in the last bits. This file is compiled without contraction (-ffp-contract=off);
 * with it the bits of a block would depend on the processor. */
#include "random/philox.h"

#include <math.h>
#include <string.h>

enum { CHUNK = 64 }; /* elements whose words are stored between the integer and the floating-point loop */

#define BODY static inline __attribute__((always_inline))

/* One round on the counter c under the key k. */
BODY void philox_round(uint32_t c[4], const uint32_t k[2])
{
    uint64_t product_0 = (uint64_t)0xD2511F53u * c[0];
    uint64_t product_2 = (uint64_t)0xCD9E8D57u * c[2];
    uint32_t c1 = c[1], c3 = c[3];
    c[0] = (uint32_t)(product_2 >> 32) ^ c1 ^ k[0];
    c[1] = (uint32_t)product_2;
    c[2] = (uint32_t)(product_0 >> 32) ^ c3 ^ k[1];
    c[3] = (uint32_t)product_0;
}

/* Ten rounds, c in place; a constant is added to the key between rounds. Unrolled by hand for the vectoriser. */
BODY void ten_rounds(uint32_t c[4], const uint32_t key[2])
{
    uint32_t k[2] = {key[0], key[1]};
#define ROUND philox_round(c, k), k[0] += 0x9E3779B9u, k[1] += 0xBB67AE85u
    ROUND, ROUND, ROUND, ROUND, ROUND;
    ROUND, ROUND, ROUND, ROUND, ROUND;
#undef ROUND
}

void fwm_philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    memcpy(out, counter, 4 * sizeof *out);
    ten_rounds(out, key);
}

/* The float nearest to x. In two halves, because vector units convert signed integers only: both are exact, and their
 * sum rounds once. */
BODY float to_float(uint32_t x)
{
    return (float)(int32_t)(x >> 16) * 65536.0f + (float)(int32_t)(x & 0xffffu);
}

/* ln x for normal x > 0, about 1 ulp. x = (1 + f) 2^e with sqrt(1/2) <= 1 + f < sqrt(2);
 * ln(1 + f) = f - f^2/2 + f^3 Q(f), Q a minimax polynomial. */
BODY float natural_log(float x)
{
    const float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
    const int32_t SQRT_HALF = 0x3f3504f3;
    int32_t word;
    memcpy(&word, &x, sizeof word);
    int32_t exponent = (word - SQRT_HALF) >> 23;
    word -= (int32_t)((uint32_t)exponent << 23);
    float mantissa;
    memcpy(&mantissa, &word, sizeof mantissa);
    float e = (float)exponent, f = mantissa - 1.0f, z = f * f;

    float q = 0.0674664838094f * f - 0.116756550522f;
    q = q * f + 0.118881605785f;
    q = q * f - 0.124055883092f;
    q = q * f + 0.14219552507f;
    q = q * f - 0.166679958906f;
    q = q * f + 0.200021186527f;
    q = q * f - 0.250000095987f;
    q = q * f + 0.333333126042f;
    float small = q * f * z + e * LN2_LOW;
    return ((small - 0.5f * z) + f) + e * LN2_HIGH;
}

/* sin x for 0 <= x <= 2 pi, about 1 ulp. r = x - k pi with |r| <= pi/2. pi is split into three parts; the products
 * with the first two are subtracted without error where r is small. sin r = r + r^3 P(r^2), P a minimax polynomial. */
BODY float sine(float x)
{
    const float INVERSE_PI = 0.318309886f;
    const float PI_HIGH = 3.140625f, PI_MIDDLE = 0x1.fb5p-11f, PI_LOW = 3.1786509424591713e-8f;
    int32_t half_turns = (int32_t)(x * INVERSE_PI + 0.5f);
    float k = (float)half_turns;
    float r = ((x - k * PI_HIGH) - k * PI_MIDDLE) - k * PI_LOW;
    float z = r * r;

    float p = -2.38889087348e-8f * z + 2.75253843942e-6f;
    p = p * z - 1.98408682093e-4f;
    p = p * z + 8.3333311086e-3f;
    p = p * z - 0.166666666261f;
    float s = r + r * z * p;
    return (half_turns & 1) ? -s : s;
}

/* words, angles (count) -> out (count), as in cuRAND:
 *
 *     u = word 2^-32 + 2^-33,   w = angle 2 pi 2^-32 + 2 pi 2^-33,   out = sqrt(-2 ln u) sin w
 *
 * u and w are rounded once, to float32: the product in w is exact in double. */
BODY void box_muller(size_t count, const uint32_t *words, const uint32_t *angles, float *restrict out)
{
    const float TWO_PI = 6.28318530717958647693f;
    const double TURN = (double)TWO_PI * 0x1p-32;
    for (size_t i = 0; i < count; i++) {
        float u = to_float(words[i]) * 0x1p-32f + 0x1p-33f;
        float w = (float)((double)to_float(angles[i]) * TURN + 0.5 * TURN);
        out[i] = sqrtf(-2.0f * natural_log(u)) * sine(w);
    }
}

BODY void normal_block(uint64_t seed, uint32_t block, size_t n, float *out)
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t words[CHUNK], angles[CHUNK];
    for (size_t first = 0; first < n; first += CHUNK) {
        for (uint32_t i = 0; i < CHUNK; i++) {
            uint32_t c[4] = {block, 0, (uint32_t)first + i, 0};
            ten_rounds(c, key);
            words[i] = c[0];
            angles[i] = c[1];
        }
        box_muller(n - first < CHUNK ? n - first : CHUNK, words, angles, out + first);
    }
}

typedef void NormalBlock(uint64_t seed, uint32_t block, size_t n, float *out);

static void normal_block_plain(uint64_t seed, uint32_t block, size_t n, float *out)
{
    normal_block(seed, block, n, out);
}

/* Clones for wider vectors, chosen at run time: the same operations and therefore the same bits. */
#ifdef FWM_HAVE_AVX2
__attribute__((target("avx2"))) static void normal_block_avx2(uint64_t seed, uint32_t block, size_t n, float *out)
{
    normal_block(seed, block, n, out);
}
#endif

#ifdef FWM_HAVE_AVX512
__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl"))) static void
normal_block_avx512(uint64_t seed, uint32_t block, size_t n, float *out)
{
    normal_block(seed, block, n, out);
}
#endif

static NormalBlock *fastest_normal_block(void)
{
#ifdef FWM_HAVE_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl"))
        return normal_block_avx512;
#endif
#ifdef FWM_HAVE_AVX2
    if (__builtin_cpu_supports("avx2"))
        return normal_block_avx2;
#endif
    return normal_block_plain;
}

void fwm_philox_normal_block(uint64_t seed, uint32_t block, size_t n, float *out)
{
    fastest_normal_block()(seed, block, n, out);
}
