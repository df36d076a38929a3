/* phi(x) = tanh(x), the map of the fast weight programmers of Schlag and Schmidhuber (2017, 2021).
 *
 * Backward: saved phi.
 *
 *     dx = (1 - phi^2) dphi
 *
 * Derived in docs/mathematics/feature_maps.md. */
#include <string.h>

#include "kernels/base/vmath.h"
#include "kernels/maps/map.h"

static size_t features(size_t d, size_t argument)
{
    (void)argument;
    return d;
}

static void forward(const MapShape *s, size_t n, const real *restrict pre, real *restrict phi, void *scratch)
{
    (void)scratch;
    for (size_t t = 0; t < n; t++, pre += s->ld, phi += s->ld_features) {
#pragma omp simd
        for (size_t i = 0; i < s->d; i++)
            phi[i] = tanh_real(pre[i]);
        if (s->ld_features > s->d)
            memset(phi + s->d, 0, (s->ld_features - s->d) * sizeof(real));
    }
}

static void backward(const MapShape *s, size_t n, const real *restrict dphi, const real *pre, const real *restrict phi,
                     real *restrict dpre, void *scratch)
{
    (void)pre;
    (void)scratch;
    for (size_t t = 0; t < n; t++, dphi += s->ld_features, phi += s->ld_features, dpre += s->ld) {
#pragma omp simd
        for (size_t i = 0; i < s->d; i++)
            dpre[i] = (1 - phi[i] * phi[i]) * dphi[i];
        if (s->ld > s->d)
            memset(dpre + s->d, 0, (s->ld - s->d) * sizeof(real));
    }
}

const FeatureMap FWM_NAME(map_tanh) = {
    .info = {.name = "tanh", .function = "tanh", .argument = "", .summary = "tanh(x)"},
    .features = features,
    .forward = forward,
    .backward = backward,
};
