/* DPFP-nu, the deterministic parameter-free projection of Schlag, Irie and Schmidhuber (2021, section 5.3):
 *
 *     r = [relu(x); relu(-x)]                           2d numbers
 *     phi block j (j = 1..nu), i = 0..2d-1:   r[i] r[i - j]      indices cyclic in 2d
 *
 * Backward: saved pre; r is recomputed. r[i] is a factor of two features of block j, the left one and the right one:
 *
 *     dr[i] = sum_j dphi_j[i] r[i - j] + dphi_j[i + j] r[i + j]
 *     dx[i] = dr[i] where x[i] > 0,  -dr[d + i] where x[i] < 0,  0 at 0
 *
 * Cyclic indices cost nothing, because a row of r has a copy of its end in front of it and a row of products a copy of
 * its start behind it. Tokens are handled in small groups: the rows of a group are all written before the first of them
 * is read at an offset, because a load that spans two recent stores has to wait for both; and a group is small enough
 * to stay in the first-level cache.
 *
 * Derived in docs/mathematics/feature_maps.md. */
#include <stdbool.h>
#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/base/vector.h"
#include "kernels/maps/map.h"

#define GROUP_TOKENS 8
#define USUAL_D 64 /* the paper's, for which rows stay in registers */

/* Sizes of the rows in scratch, where `lead` numbers lie on either side of a row's 2d: of r, its end in front and its
 * start behind; of the products dphi_j r, their start behind. */
typedef struct {
    size_t width;     /* 2d */
    size_t lead, row; /* row = lead + width + lead: from a row to the next */
} DpfpRows;

static DpfpRows rows_of_shape(const MapShape *s)
{
    const size_t width = 2 * s->d, lead = fwm_padded(fwm_min(s->argument, width - 1));
    return (DpfpRows){width, lead, lead + width + lead};
}

static size_t features(size_t d, size_t nu)
{
    return 2 * d * nu;
}

typedef struct {
    real *r, *products; /* GROUP_TOKENS x row */
    real *dr;           /* GROUP_TOKENS x width */
} DpfpScratch;

static DpfpScratch take_scratch(const DpfpRows *rows, Arena *arena)
{
    DpfpScratch w;
    w.r = take(arena, GROUP_TOKENS * rows->row);
    w.products = take(arena, GROUP_TOKENS * rows->row);
    w.dr = take(arena, GROUP_TOKENS * rows->width);
    return w;
}

static size_t scratch_bytes(const MapShape *s)
{
    const DpfpRows rows = rows_of_shape(s);
    Arena arena = {0};
    take_scratch(&rows, &arena);
    return arena.next;
}

/* positive = relu(x), negative = relu(-x), d numbers each; NaN stays NaN. */
static inline void rectify_row(size_t d, const real *restrict x, real *restrict positive, real *restrict negative)
{
    const vec zero = {0};
    size_t i = 0;
    for (; i + FWM_LANES <= d; i += FWM_LANES) {
        const vec x_i = vec_load(x + i);
        vec_store(positive + i, vec_select(x_i < 0, zero, x_i));
        vec_store(negative + i, vec_select(x_i > 0, zero, -x_i));
    }
    for (; i < d; i++) {
        positive[i] = x[i] < 0 ? 0 : x[i];
        negative[i] = x[i] > 0 ? 0 : -x[i];
    }
}

/* Copies the end of a row in front of it and its start behind it, in whole vectors if the row is long enough. */
static inline void wrap_row(const DpfpRows *rows, real *row)
{
    real *end = row + rows->width;
    if (rows->lead <= rows->width) {
        for (size_t k = 0; k < rows->lead; k += FWM_LANES) {
            vec_store(row - rows->lead + k, vec_load(end - rows->lead + k));
            vec_store(end + k, vec_load(row + k));
        }
        return;
    }
    for (size_t k = 1; k < rows->width; k++) {
        row[-(ptrdiff_t)k] = end[-(ptrdiff_t)k];
        end[k - 1] = row[k - 1];
    }
}

/* r of n tokens, with wrapped rows. */
static void rectify_group(const MapShape *s, const DpfpRows *rows, size_t n, const real *pre, real *r)
{
    for (size_t t = 0; t < n; t++, pre += s->ld, r += rows->row) {
        real *row = r + rows->lead;
        rectify_row(s->d, pre, row, row + s->d);
        wrap_row(rows, row);
    }
}

/* out = x y */
static inline void multiply(size_t n, const real *restrict x, const real *restrict y, real *restrict out)
{
    size_t i = 0;
    for (; i + FWM_LANES <= n; i += FWM_LANES)
        vec_store(out + i, vec_load(x + i) * vec_load(y + i));
    for (; i < n; i++)
        out[i] = x[i] * y[i];
}

static void forward_group(const MapShape *s, const DpfpRows *rows, size_t n, const real *pre, real *phi, real *r)
{
    const size_t width = rows->width;
    rectify_group(s, rows, n, pre, r);
    for (size_t t = 0; t < n; t++) {
        const real *r_t = r + t * rows->row + rows->lead;
        real *out = phi + t * s->ld_features;
        for (size_t j = 1; j <= s->argument; j++, out += width)
            multiply(width, r_t, r_t - j % width, out);
        if (s->ld_features > s->features)
            memset(out, 0, (s->ld_features - s->features) * sizeof(real));
    }
}

/* If rows consist of whole vectors and shifts are shorter than a vector, r need not be stored: with x[i - d] = -x[i], r
 * and its shifted copies are rectified from x in registers. Shifted loads would cross a cache line each. */
static bool fits_vectors(const MapShape *s)
{
    return s->d % FWM_LANES == 0 && s->argument < FWM_LANES;
}

/* Lanes j .. j + FWM_LANES - 1 of two vectors side by side; a constant j < FWM_LANES makes it one instruction. */
ALWAYS_INLINE vec onward(vec first, vec second, size_t j)
{
#if FWM_HAVE_SHUFFLE
#if defined(FWM_X86) && FWM_REAL_IS_DOUBLE
#define FWM_CASE(by)                                                                                                   \
    case by: return (vec)_mm512_alignr_epi64((__m512i)second, (__m512i)first, by);
#elif defined(FWM_X86)
#define FWM_CASE(by)                                                                                                   \
    case by: return (vec)_mm512_alignr_epi32((__m512i)second, (__m512i)first, by);
#else
#define FWM_ONWARD(lane, by) ((lane) + (by) % FWM_LANES)
#define FWM_CASE(by)                                                                                                   \
    case by: return FWM_SHUFFLE(FWM_ONWARD, first, second, by);
#endif
    switch (j) {
        FWM_CASE(1)
        FWM_CASE(2)
        FWM_CASE(3)
#if FWM_LANES > 4
        FWM_CASE(4)
        FWM_CASE(5)
        FWM_CASE(6)
        FWM_CASE(7)
#endif
#if FWM_LANES > 8
        FWM_CASE(8)
        FWM_CASE(9)
        FWM_CASE(10)
        FWM_CASE(11)
        FWM_CASE(12)
        FWM_CASE(13)
        FWM_CASE(14)
        FWM_CASE(15)
#endif
    default: return first;
    }
#undef FWM_CASE
#undef FWM_ONWARD
#else
    real both[2 * FWM_LANES];
    vec_store(both, first);
    vec_store(both + FWM_LANES, second);
    return vec_load(both + j);
#endif
}

/* Inlined for the nu of the paper: a loop of one or two iterations for each vector costs as much as the work in it. */
ALWAYS_INLINE void forward_vectors(const MapShape *s, size_t d, size_t nu, size_t n, const real *pre, real *phi)
{
    for (size_t t = 0; t < n; t++, pre += s->ld, phi += s->ld_features) {
        vec before = -vec_load(pre + d - FWM_LANES);
#pragma GCC unroll 4
        for (size_t i = 0; i < d; i += FWM_LANES) {
            const vec x = vec_load(pre + i), positive = vec_positive(x), negative = vec_negative(x);
            for (size_t j = 1; j <= nu; j++) {
                const vec x_j = onward(before, x, FWM_LANES - j);
                real *block = phi + (j - 1) * 2 * d;
                vec_store(block + i, positive * vec_positive(x_j));
                vec_store(block + d + i, negative * vec_negative(x_j));
            }
            before = x;
        }
        if (s->ld_features > s->features)
            memset(phi + s->features, 0, (s->ld_features - s->features) * sizeof(real));
    }
}

ALWAYS_INLINE void backward_vectors(const MapShape *s, size_t d, size_t nu, size_t n, const real *dphi, const real *pre,
                                    real *dpre)
{
    for (size_t t = 0; t < n; t++, pre += s->ld, dpre += s->ld, dphi += s->ld_features) {
        vec before = -vec_load(pre + d - FWM_LANES), x = vec_load(pre), behind;
#pragma GCC unroll 4
        for (size_t i = 0; i < d; i += FWM_LANES, before = x, x = behind) {
            const bool last = i + FWM_LANES == d;
            behind = last ? -vec_load(pre) : vec_load(pre + i + FWM_LANES);
            vec up = {0}, down = {0}; /* dx where x > 0, and where x < 0 */
            for (size_t j = 1; j <= nu; j++) {
                const real *block = dphi + (j - 1) * 2 * d + i, *wrapped = last ? block - i : block + d + FWM_LANES;
                const vec left = onward(before, x, FWM_LANES - j), right = onward(x, behind, j);
                const vec dup = vec_load(block), ddown = vec_load(block + d);
                const vec dup_j = onward(dup, vec_load(block + FWM_LANES), j),
                          ddown_j = onward(ddown, vec_load(wrapped), j);
                const vec more_up = dup * vec_positive(left) + vec_in_register(dup_j * vec_positive(right));
                const vec more_down = vec_in_register(ddown * vec_negative(left)) + ddown_j * vec_negative(right);
                up = j > 1 ? up + more_up : more_up;
                down = j > 1 ? down + more_down : more_down;
            }
            vec_store(dpre + i, vec_by_sign(x, up, down));
        }
        if (s->ld > d)
            memset(dpre + d, 0, (s->ld - d) * sizeof(real));
    }
}

static void forward(const MapShape *s, size_t n, const real *pre, real *phi, void *scratch)
{
    const DpfpRows rows = rows_of_shape(s);
    if (fits_vectors(s)) {
        switch (s->argument) {
        case 1:
            if (s->d == USUAL_D)
                forward_vectors(s, USUAL_D, 1, n, pre, phi);
            else
                forward_vectors(s, s->d, 1, n, pre, phi);
            return;
        case 2: forward_vectors(s, s->d, 2, n, pre, phi); return;
        case 3: forward_vectors(s, s->d, 3, n, pre, phi); return;
        default: forward_vectors(s, s->d, s->argument, n, pre, phi); return;
        }
    }
    Arena arena = arena_at(scratch);
    const DpfpScratch w = take_scratch(&rows, &arena);
    for (size_t t = 0; t < n; t += GROUP_TOKENS)
        forward_group(s, &rows, fwm_min(GROUP_TOKENS, n - t), pre + t * s->ld, phi + t * s->ld_features, w.r);
}

/* dr (2d numbers a token) += the gradients of block j; = for the first block. products: scratch for dphi_j r. */
static inline void backward_block(const MapShape *s, const DpfpRows *rows, size_t n, size_t j, const real *dphi_j,
                                  const real *r, real *products, real *dr)
{
    const size_t width = rows->width, shift = j % width;
    for (size_t t = 0; t < n; t++) {
        const real *restrict d_t = dphi_j + t * s->ld_features, *restrict r_t = r + t * rows->row + rows->lead;
        real *restrict product = products + t * rows->row;
        multiply(width, d_t, r_t, product);
        memcpy(product + width, product, shift * sizeof(real));
    }
    for (size_t t = 0; t < n; t++) {
        const real *restrict d_t = dphi_j + t * s->ld_features, *restrict right =
                                                                    r + t * rows->row + rows->lead - shift;
        const real *restrict left = products + t * rows->row + shift;
        real *restrict out = dr + t * width;
#pragma omp simd
        for (size_t i = 0; i < width; i++)
            out[i] = (j > 1 ? out[i] : 0) + (d_t[i] * right[i] + left[i]);
    }
}

/* Not inlined: beside the code for whole vectors, in one function, the compiler spills the pointers of these loops. */
__attribute__((noinline)) static void backward_group(const MapShape *s, const DpfpRows *rows, size_t n,
                                                     const real *dphi, const real *pre, real *dpre,
                                                     const DpfpScratch *w)
{
    const size_t d = s->d;
    real *r = w->r, *products = w->products, *dr = w->dr;
    rectify_group(s, rows, n, pre, r);
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

static void backward(const MapShape *s, size_t n, const real *dphi, const real *pre, const real *phi, real *dpre,
                     void *scratch)
{
    const DpfpRows rows = rows_of_shape(s);
    (void)phi;
    if (fits_vectors(s)) {
        switch (s->argument) {
        case 1:
            if (s->d == USUAL_D)
                backward_vectors(s, USUAL_D, 1, n, dphi, pre, dpre);
            else
                backward_vectors(s, s->d, 1, n, dphi, pre, dpre);
            return;
        case 2: backward_vectors(s, s->d, 2, n, dphi, pre, dpre); return;
        case 3: backward_vectors(s, s->d, 3, n, dphi, pre, dpre); return;
        default: backward_vectors(s, s->d, s->argument, n, dphi, pre, dpre); return;
        }
    }
    Arena arena = arena_at(scratch);
    const DpfpScratch w = take_scratch(&rows, &arena);
    for (size_t t = 0; t < n; t += GROUP_TOKENS)
        backward_group(s, &rows, fwm_min(GROUP_TOKENS, n - t), dphi + t * s->ld_features, pre + t * s->ld,
                       dpre + t * s->ld, &w);
}

const FeatureMap FWM_NAME(map_dpfp) = {
    .info = {.name = "dpfp",
             .function = "dpfp",
             .argument = "nu",
             .positive = true,
             .summary = "deterministic parameter-free projection: products of rectified neighbours"},
    .features = features,
    .scratch = scratch_bytes,
    .forward = forward,
    .backward = backward,
};
