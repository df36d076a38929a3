/* DPFP-nu, the deterministic parameter-free projection of Schlag, Irie and Schmidhuber (2021, section 5.3):
 *
 *     r = [relu(x); relu(-x)]                           2d numbers
 *     phi block j (j = 1..nu), i = 0..2d-1:   r[i] r[i - j]      indices cyclic in 2d
 *
 * Backward: saved pre; r is recomputed. r[i] stands in two features of block j, as the left and as the right factor:
 *     dr[i] = sum_j dphi_j[i] r[i - j] + dphi_j[i + j] r[i + j]
 *     dx[i] = dr[i] where x[i] > 0,  -dr[d + i] where x[i] < 0,  0 at 0
 *
 * Cyclic indices cost nothing where a row has its own end in front of it, and a product its own start behind it. A few
 * tokens' rows are written before the first is read at an offset, because a load that straddles two stores of a moment ago
 * has to wait for both; no more than a few, for they should stay in the first-level cache. */
#include <string.h>

#include "kernels/maps/map.h"

#define TOKENS 4

/* The scratch rows of these sizes: r with `lead` numbers in front, of which the last are r's end; products dphi_j r with
 * room for `lead` numbers of their start behind them. */
typedef struct {
    size_t width;     /* 2d */
    size_t lead, row; /* row = lead + 2d */
} Rows;

static Rows rows_of_shape(const MapShape *s)
{
    const size_t width = 2 * s->d, lead = fwm_padded(fwm_min(s->argument, width - 1));
    return (Rows){width, lead, lead + width};
}

static size_t features(size_t d, size_t nu)
{
    return 2 * d * nu;
}

static size_t scratch_size(const MapShape *s)
{
    const Rows rows = rows_of_shape(s);
    return TOKENS * (2 * rows.row + rows.width);
}

/* r of n tokens, each with its end in front. */
static void rectify(const MapShape *s, const Rows *rows, size_t n, const real *restrict pre, real *restrict r)
{
    const size_t d = s->d, shifts = fwm_min(s->argument, rows->width - 1);
    for (size_t t = 0; t < n; t++, pre += s->ld, r += rows->row) {
        real *restrict up = r + rows->lead, *restrict down = up + d;
#pragma omp simd
        for (size_t i = 0; i < d; i++) {
            const real x = pre[i], minus = -pre[i];
            up[i] = 0 > x ? 0 : x; /* NaN stays NaN */
            down[i] = 0 > minus ? 0 : minus;
        }
        for (size_t k = 1; k <= shifts; k++)
            r[rows->lead - k] = up[rows->width - k];
    }
}

static void forward_few(const MapShape *s, const Rows *rows, size_t n, const real *pre, real *phi, real *r)
{
    const size_t width = rows->width;
    rectify(s, rows, n, pre, r);
    for (size_t t = 0; t < n; t++) {
        const real *restrict left = r + t * rows->row + rows->lead;
        real *restrict out = phi + t * s->ld_features;
        for (size_t j = 1; j <= s->argument; j++, out += width) {
            const real *restrict right = left - j % width;
#pragma omp simd
            for (size_t i = 0; i < width; i++)
                out[i] = left[i] * right[i];
        }
        if (s->ld_features > s->features)
            memset(out, 0, (s->ld_features - s->features) * sizeof(real));
    }
}

static void forward(const MapShape *s, size_t n, const real *pre, real *phi, real *scratch)
{
    const Rows rows = rows_of_shape(s);
    for (size_t t = 0; t < n; t += TOKENS)
        forward_few(s, &rows, fwm_min(TOKENS, n - t), pre + t * s->ld, phi + t * s->ld_features, scratch);
}

/* dr (2d a token) += the gradients of block j, = for the first; products is room for dphi_j r. */
static inline void backward_block(const MapShape *s, const Rows *rows, size_t n, size_t j, const real *dphi_j, const real *r, real *products,
                           real *dr)
{
    const size_t width = rows->width, shift = j % width;
    for (size_t t = 0; t < n; t++) {
        const real *restrict d_t = dphi_j + t * s->ld_features, *restrict r_t = r + t * rows->row + rows->lead;
        real *restrict product = products + t * rows->row;
#pragma omp simd
        for (size_t i = 0; i < width; i++)
            product[i] = d_t[i] * r_t[i];
        for (size_t i = 0; i < shift; i++)
            product[width + i] = product[i];
    }
    for (size_t t = 0; t < n; t++) {
        const real *restrict d_t = dphi_j + t * s->ld_features, *restrict right = r + t * rows->row + rows->lead - shift;
        const real *restrict left = products + t * rows->row + shift;
        real *restrict out = dr + t * width;
#pragma omp simd
        for (size_t i = 0; i < width; i++)
            out[i] = (j > 1 ? out[i] : 0) + (d_t[i] * right[i] + left[i]);
    }
}

static void backward_few(const MapShape *s, const Rows *rows, size_t n, const real *dphi, const real *pre, real *dpre, real *scratch)
{
    const size_t d = s->d;
    real *r = scratch, *products = r + TOKENS * rows->row, *dr = products + TOKENS * rows->row;
    rectify(s, rows, n, pre, r);
    for (size_t j = 1; j <= s->argument; j++)
        backward_block(s, rows, n, j, dphi + (j - 1) * rows->width, r, products, dr);
    for (size_t t = 0; t < n; t++, pre += s->ld, dpre += s->ld, dr += rows->width) {
        const real *restrict x = pre, *restrict dup = dr, *restrict ddown = dr + d;
        real *restrict dx = dpre;
#pragma omp simd
        for (size_t i = 0; i < d; i++) {
            const real up = x[i] > 0 ? dup[i] : 0, down = x[i] < 0 ? ddown[i] : 0;
            dx[i] = up - down;
        }
        if (s->ld > d)
            memset(dpre + d, 0, (s->ld - d) * sizeof(real));
    }
}

static void backward(const MapShape *s, size_t n, const real *dphi, const real *pre, const real *phi, real *dpre, real *scratch)
{
    const Rows rows = rows_of_shape(s);
    (void)phi;
    for (size_t t = 0; t < n; t += TOKENS)
        backward_few(s, &rows, fwm_min(TOKENS, n - t), dphi + t * s->ld_features, pre + t * s->ld, dpre + t * s->ld, scratch);
}

const FeatureMap FWM_NAME(map_dpfp) = {
    .info = {.name = "dpfp", .function = "dpfp", .argument = "nu",
             .summary = "deterministic parameter-free projection: products of rectified neighbours"},
    .features = features,
    .scratch = scratch_size,
    .forward = forward,
    .backward = backward,
};
