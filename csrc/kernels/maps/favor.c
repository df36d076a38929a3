/* FAVOR+, the positive random features of Choromanski et al. (2021), as the experiments use them (no d^-1/4 scaling):
 *
 *     u = x Omega                                        m numbers, part of the row (map.h)
 *     phi = [exp(u - o); exp(-u - o)],   o = |x|^2 / 2 + log(m) / 2 + log(2) / 2
 *
 * The exponent is summed before the exponential is taken: a product of exponentials would underflow for other x, and
 * the published runs' 0 / 0 in the delta rule would come at other steps.
 *
 * Backward: saved pre and phi; Omega is a constant. With e = dphi phi, elementwise, and o depending on x alone,
 *
 *     du[i] = e[i] - e[m + i]
 *     dx    = -(sum of e) x                              and dx += Omega du, which omega_backward adds (omega.h)
 *
 * A NaN in x stays NaN.
 *
 * Derived in docs/mathematics/feature_maps.md. */
#include <stdbool.h>
#include <string.h>

#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"
#include "kernels/maps/map.h"

static size_t features(size_t d, size_t m)
{
    (void)d;
    return 2 * m;
}

static size_t extension(size_t m)
{
    return m;
}

/* The largest |u|; NaN if any is, or is infinite. */
static real largest(const MapShape *s, const real *pre)
{
    const real *restrict u = pre + s->u;
    real most = 0, nan = 0;
#pragma omp simd reduction(max : most) reduction(+ : nan)
    for (size_t i = 0; i < s->argument; i++) {
        most = FWM_FABS(u[i]) > most ? FWM_FABS(u[i]) : most;
        nan += u[i] * 0;
    }
    return most + nan;
}

/* Whether every exponent, at most so large, is so small that its exp is 0. With a large N all features are. */
static bool underflows(const MapShape *s, real exponent)
{
    return exponent < (s->flushes ? FWM_EXP_FLUSHED : FWM_EXP_SMALLEST);
}

/* o is at least |x|^2 / 2, here less a bound of the relative rounding error. */
static bool vanishes(const MapShape *s, const real *x, real largest_u)
{
    const real square = dot(s->u, x, x) * (1 - (real)1e-5);
    return underflows(s, largest_u - square / 2);
}

#ifdef FWM_X86
#if FWM_REAL_IS_DOUBLE
#define FWM_SCALED(x, n) ((vec)_mm512_scalef_pd((__m512d)(x), (__m512d)(n)))
#else
#define FWM_SCALED(x, n) ((vec)_mm512_scalef_ps((__m512)(x), (__m512)(n)))
#endif

/* exp_real (vmath.h), to the bit: AVX-512 multiplies by 2^n in one instruction, and its min and max keep a NaN. */
static inline vec vec_exp(vec x)
{
    const vec zero = {0}, smallest = zero + (real)FWM_EXP_SMALLEST, largest_x = zero + (real)FWM_EXP_LARGEST;
    x = FWM_X86(max, smallest, FWM_X86(min, largest_x, x));
    const vec n = x * (real)1.44269504088896340736 + FWM_ROUNDER - FWM_ROUNDER;
    const vec high = x - n * FWM_LN2_HIGH, r = high - n * FWM_LN2_LOW, lost = (high - r) - n * FWM_LN2_LOW;
    vec q;
    FWM_EXPM1_SERIES(q, r);
    return FWM_SCALED(1 + (r + (r * r * q + lost)), n);
}
#endif

/* out = exp(sign u - o), sign 1 or -1 */
static void exponentials(size_t m, const real *restrict u, real sign, real o, real *restrict out)
{
    size_t i = 0;
#ifdef FWM_X86
    for (; i + FWM_LANES <= m; i += FWM_LANES)
        vec_store(out + i, vec_exp(sign * vec_load(u + i) - o));
#endif
#pragma omp simd
    for (size_t j = i; j < m; j++)
        out[j] = exp_real(sign * u[j] - o);
}

static void forward(const MapShape *s, size_t n, const real *restrict pre, real *restrict phi, void *scratch)
{
    (void)scratch;
    const size_t m = s->argument;
    const double constant = 0.5 * log(2.0 * (double)m);
    for (size_t t = 0; t < n; t++, pre += s->ld, phi += s->ld_features) {
        const real *restrict u = pre + s->u;
        double square =
            0; /* in double: an absolute error of o is a relative error of every feature, and o may be near 100 */
#pragma omp simd reduction(+ : square)
        for (size_t i = 0; i < s->d; i++)
            square += (double)pre[i] * (double)pre[i];
        const real o = (real)(square / 2 + constant);
        if (underflows(s, largest(s, pre) - o)) {
            memset(phi, 0, s->ld_features * sizeof(real));
            continue;
        }
        exponentials(m, u, 1, o, phi);
        exponentials(m, u, -1, o, phi + m);
        memset(phi + 2 * m, 0, (s->ld_features - 2 * m) * sizeof(real));
    }
}

static void backward(const MapShape *s, size_t n, const real *restrict dphi, const real *restrict pre,
                     const real *restrict phi, real *restrict dpre, void *scratch)
{
    (void)scratch;
    const size_t m = s->argument;
    for (size_t t = 0; t < n; t++, dphi += s->ld_features, pre += s->ld, phi += s->ld_features, dpre += s->ld) {
        real *restrict du = dpre + s->u;
        real total = 0;
#pragma omp simd reduction(+ : total)
        for (size_t i = 0; i < m; i++) {
            const real plus = dphi[i] * phi[i], minus = dphi[m + i] * phi[m + i];
            du[i] = plus - minus;
            total += plus + minus;
        }
        for (size_t i = 0; i < s->d; i++)
            dpre[i] = -total * pre[i];
        memset(dpre + s->d, 0, (s->u - s->d) * sizeof(real));
        memset(du + m, 0, (s->ld - s->u - m) * sizeof(real));
    }
}

const FeatureMap FWM_NAME(map_favor) = {
    .info = {.name = "favor",
             .function = "favor",
             .argument = "m",
             .positive = true,
             .takes_omega = true,
             .summary = "FAVOR+: positive orthogonal random features of the softmax kernel"},
    .features = features,
    .extension = extension,
    .forward = forward,
    .backward = backward,
    .vanishes = vanishes,
    .largest = largest,
};
