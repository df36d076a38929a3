/* DPFP-nu, the deterministic parameter-free projection of Schlag, Irie and Schmidhuber (2021, section 5.3):
 *
 *     r = [relu(x); relu(-x)]                           2d numbers
 *     phi block j (j = 1..nu), i = 0..2d-1:   r[i] r[i - j]      indices cyclic in 2d
 *
 * Backward: saved pre; r is recomputed. r[i] stands in two features of block j, as the left and as the right factor:
 *     dr[i] = sum_j dphi_j[i] r[i - j] + dphi_j[i + j] r[i + j]
 *     dx[i] = dr[i] where x[i] > 0,  -dr[d + i] where x[i] < 0,  0 at 0
 *
 * Cyclic indices cost nothing when rows stand twice, one after the other: row[2d + i - j] and row[i + j] need no
 * remainder. A tile's rows are written first and read afterwards, because a load that straddles two stores of a moment
 * ago has to wait for both. */
#include <string.h>

#include "kernels/maps/map.h"

static size_t features(size_t d, size_t nu)
{
    return 2 * d * nu;
}

/* A doubled row has 4d numbers: forward keeps r for a tile, backward also the products dphi_j r, and dr. */
static size_t scratch_size(const MapShape *s)
{
    return FWM_TILE * 10 * s->d;
}

/* r (n x 4d), doubled, of n <= FWM_TILE tokens. */
static void rectify(const MapShape *s, size_t n, const real *restrict pre, real *restrict r)
{
    const size_t d = s->d;
    for (size_t t = 0; t < n; t++, pre += s->ld, r += 4 * d)
        for (size_t i = 0; i < d; i++) {
            const real x = pre[i];
            const real positive = x < 0 ? 0 : x, negative = x > 0 ? 0 : -x; /* NaN stays NaN */
            r[i] = positive;
            r[d + i] = negative;
            r[2 * d + i] = positive;
            r[3 * d + i] = negative;
        }
}

static void forward(const MapShape *s, size_t n, const real *pre, real *phi, real *r)
{
    const size_t width = 2 * s->d;
    for (size_t t0 = 0; t0 < n; t0 += FWM_TILE) {
        const size_t t1 = fwm_min(n, t0 + FWM_TILE);
        rectify(s, t1 - t0, pre + t0 * s->ld, r);
        for (size_t t = t0; t < t1; t++) {
            const real *restrict left = r + (t - t0) * 2 * width;
            real *restrict out = phi + t * s->ld_features;
            for (size_t j = 1; j <= s->argument; j++, out += width) {
                const real *restrict right = left + width - j % width;
                for (size_t i = 0; i < width; i++)
                    out[i] = left[i] * right[i];
            }
            memset(out, 0, (s->ld_features - s->features) * sizeof(real));
        }
    }
}

/* product (n x 4d), doubled = dphi_j * r */
static void multiply(const MapShape *s, size_t n, const real *restrict dphi_j, const real *restrict r, real *restrict product)
{
    const size_t width = 2 * s->d;
    for (size_t t = 0; t < n; t++, dphi_j += s->ld_features, r += 2 * width, product += 2 * width)
        for (size_t i = 0; i < width; i++)
            product[i] = product[width + i] = dphi_j[i] * r[i];
}

static void backward_tile(const MapShape *s, size_t n, const real *dphi, const real *pre, real *dpre, real *scratch)
{
    const size_t d = s->d, width = 2 * d;
    real *r = scratch, *product = r + n * 2 * width, *dr = product + n * 2 * width;
    rectify(s, n, pre, r);
    memset(dr, 0, n * width * sizeof(real));
    for (size_t j = 1; j <= s->argument; j++, dphi += width) {
        const size_t shift = j % width;
        multiply(s, n, dphi, r, product);
        for (size_t t = 0; t < n; t++) {
            const real *restrict dphi_j = dphi + t * s->ld_features;
            const real *restrict right = r + t * 2 * width + width - shift; /* r[i - j] */
            const real *restrict left = product + t * 2 * width + shift;    /* dphi_j[i + j] r[i + j] */
            real *restrict out = dr + t * width;
            for (size_t i = 0; i < width; i++)
                out[i] += dphi_j[i] * right[i] + left[i];
        }
    }
    for (size_t t = 0; t < n; t++, pre += s->ld, dpre += s->ld, dr += width) {
        for (size_t i = 0; i < d; i++) {
            const real up = pre[i] > 0 ? dr[i] : 0, down = pre[i] < 0 ? dr[d + i] : 0;
            dpre[i] = up - down;
        }
        memset(dpre + d, 0, (s->ld - d) * sizeof(real));
    }
}

static void backward(const MapShape *s, size_t n, const real *dphi, const real *pre, const real *phi, real *dpre, real *scratch)
{
    (void)phi;
    for (size_t t = 0; t < n; t += FWM_TILE)
        backward_tile(s, fwm_min(FWM_TILE, n - t), dphi + t * s->ld_features, pre + t * s->ld, dpre + t * s->ld, scratch);
}

const FeatureMap FWM_NAME(map_dpfp) = {
    .info = {.name = "dpfp", .function = "dpfp", .argument = "nu",
             .summary = "deterministic parameter-free projection: products of rectified neighbours"},
    .features = features,
    .scratch = scratch_size,
    .forward = forward,
    .backward = backward,
};
