/* Normals are computed as in torch's AVX2 kernel, rounding by rounding: logarithm, sine and cosine are the
 * single-precision polynomials of Cephes (Moshier), and fmaf stands exactly where torch's compiler fused a product into
 * a sum. So this file must be compiled without contraction of its own (-ffp-contract=off). fmaf rounds once by IEEE
 * 754, so the AVX2+FMA clones below, chosen at run time, give the same bits as the plain functions and save time. */
#include "random/torch_cpu.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

enum { BLOCK = 16, HALF = 8 }; /* a block pairs element i with element i + 8 */

#define BODY static inline __attribute__((always_inline))

BODY float natural_log(float x)
{
    const float LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f, SQRT_HALF = 0.707106781186547524f;

    /* x = (1 + f) 2^e, sqrt(1/2) <= 1 + f < sqrt(2). */
    int32_t word;
    memcpy(&word, &x, sizeof word);
    int32_t exponent = (word >> 23) - 126;
    word = (word & 0x007fffff) | 0x3f000000;
    float mantissa;
    memcpy(&mantissa, &word, sizeof mantissa);
    int32_t low = mantissa < SQRT_HALF;
    float e = (float)(exponent - low);
    float f = (low ? mantissa + mantissa : mantissa) - 1.0f;

    float z = f * f;
    float y = fmaf(7.0376836292e-2f, f, -1.1514610310e-1f);
    y = fmaf(y, f, 1.1676998740e-1f);
    y = fmaf(y, f, -1.2420140846e-1f);
    y = fmaf(y, f, 1.4249322787e-1f);
    y = fmaf(y, f, -1.6668057665e-1f);
    y = fmaf(y, f, 2.0000714765e-1f);
    y = fmaf(y, f, -2.4999993993e-1f);
    y = fmaf(y, f, 3.3333331174e-1f) * f;
    y = fmaf(y, z, e * LN2_LOW);
    y = fmaf(z, -0.5f, y);
    return fmaf(e, LN2_HIGH, f + y);
}

/* x >= 0. */
BODY void sine_and_cosine(float x, float *sine, float *cosine)
{
    const float FOUR_OVER_PI = 1.27323954473516f;

    /* r = x - octant pi/4 with an even octant, |r| <= pi/4; pi/4 comes in three parts. */
    int32_t octant = ((int32_t)(x * FOUR_OVER_PI) + 1) & ~1;
    float o = (float)octant;
    float r = fmaf(o, -0.78515625f, x);
    r = fmaf(o, -2.4187564849853515625e-4f, r);
    r = fmaf(o, -3.77489497744594108e-8f, r);
    float z = r * r;

    float c = fmaf(2.443315711809948e-5f, z, -1.388731625493765e-3f);
    c = fmaf(c, z, 4.166664568298827e-2f) * z;
    c = fmaf(c, z, -(z * 0.5f)) + 1.0f;
    float s = fmaf(-1.9515295891e-4f, z, 8.3321608736e-3f);
    s = fmaf(s, z, -1.6666654611e-1f) * z;
    s = fmaf(s, r, r);

    float plain_sine = (octant & 2) ? c : s, plain_cosine = (octant & 2) ? s : c;
    *sine = (octant & 4) ? -plain_sine : plain_sine;
    *cosine = ((octant + 2) & 4) ? -plain_cosine : plain_cosine;
}

/* x (16): uniforms on [0, 1) become standard normals, by the Box-Muller transform. torch adds a mean of 0, which turns
 * -0 into +0. */
BODY void transform_block(float *restrict x)
{
    const float TWO_PI = 6.28318530717958647693f;
    for (int i = 0; i < HALF; i++) {
        float radius = sqrtf(-2.0f * natural_log(1.0f - x[i]));
        float sine, cosine;
        sine_and_cosine(TWO_PI * x[i + HALF], &sine, &cosine);
        x[i] = radius * cosine + 0.0f;
        x[i + HALF] = radius * sine + 0.0f;
    }
}

BODY void transform_blocks(size_t n_blocks, float *x)
{
    for (size_t block = 0; block < n_blocks; block++)
        transform_block(x + block * BLOCK);
}

/* x (n): uniforms on [0, 1) become low + x width. */
BODY void stretch(size_t n, float low, float width, float *x)
{
    for (size_t i = 0; i < n; i++)
        x[i] = fmaf(x[i], width, low);
}

typedef void TransformBlocks(size_t n_blocks, float *x);
typedef void Stretch(size_t n, float low, float width, float *x);

static void transform_blocks_plain(size_t n_blocks, float *x)
{
    transform_blocks(n_blocks, x);
}

static void stretch_plain(size_t n, float low, float width, float *x)
{
    stretch(n, low, width, x);
}

#ifdef FWM_HAVE_AVX2
__attribute__((target("avx2,fma"))) static void transform_blocks_fma(size_t n_blocks, float *x)
{
    transform_blocks(n_blocks, x);
}

__attribute__((target("avx2,fma"))) static void stretch_fma(size_t n, float low, float width, float *x)
{
    stretch(n, low, width, x);
}

static bool have_fma(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#else
#define transform_blocks_fma transform_blocks_plain
#define stretch_fma stretch_plain

static bool have_fma(void)
{
    return false;
}
#endif

void fwm_torch_seed(FwmTorchCpu *g, uint32_t seed)
{
    fwm_mt19937_seed(&g->bits, seed);
    g->has_spare = false;
    g->spare = 0.0;
}

/* out (n): uniforms on [0, 1), the low 24 bits of a word each. */
static void unit_uniforms(FwmMT19937 *bits, size_t n, float *out)
{
    while (n > 0) {
        if (bits->position == FWM_MT19937_WORDS)
            fwm_mt19937_refill(bits);
        size_t left = (size_t)(FWM_MT19937_WORDS - bits->position);
        size_t count = n < left ? n : left;
        const uint32_t *words = bits->tempered + bits->position;
        for (size_t i = 0; i < count; i++)
            out[i] = (float)(int32_t)(words[i] & 0xffffffu) * 0x1p-24f;
        bits->position += (int)count;
        out += count;
        n -= count;
    }
}

void fwm_torch_uniform(FwmTorchCpu *g, size_t n, float low, float high, float *out)
{
    unit_uniforms(&g->bits, n, out);
    Stretch *fastest_stretch = have_fma() ? stretch_fma : stretch_plain;
    fastest_stretch(n, low, high - low, out);
}

/* A double on [0, 1) from two words, the high one first. */
static double unit_double(FwmMT19937 *bits)
{
    uint64_t high = fwm_mt19937_next(bits);
    uint64_t word = high << 32 | fwm_mt19937_next(bits);
    return (double)(word & ((UINT64_C(1) << 53) - 1)) * 0x1p-53;
}

static double single_normal(FwmTorchCpu *g)
{
    if (g->has_spare) {
        g->has_spare = false;
        return g->spare;
    }
    const double TWO_PI = 6.28318530717958647693;
    double angle = TWO_PI * unit_double(&g->bits);
    double radius = sqrt(-2.0 * log1p(-unit_double(&g->bits)));
    g->spare = radius * sin(angle);
    g->has_spare = true;
    return radius * cos(angle);
}

/* When n is no multiple of 16, the last 16 elements are drawn anew after all others are done. */
void fwm_torch_normal(FwmTorchCpu *g, size_t n, float *out)
{
    if (n < BLOCK) {
        for (size_t i = 0; i < n; i++)
            out[i] = (float)single_normal(g);
        return;
    }
    TransformBlocks *transform = have_fma() ? transform_blocks_fma : transform_blocks_plain;
    unit_uniforms(&g->bits, n, out);
    transform(n / BLOCK, out);
    if (n % BLOCK != 0) {
        unit_uniforms(&g->bits, BLOCK, out + n - BLOCK);
        transform(1, out + n - BLOCK);
    }
}

void fwm_torch_skip_uniform(FwmTorchCpu *g, size_t n)
{
    fwm_mt19937_skip(&g->bits, n);
}

void fwm_torch_skip_normal(FwmTorchCpu *g, size_t n)
{
    if (n >= BLOCK) {
        fwm_mt19937_skip(&g->bits, n % BLOCK != 0 ? n + BLOCK : n);
        return;
    }
    for (size_t i = 0; i < n; i++) /* fewer than 16: the transforms cost nothing */
        single_normal(g);
}
