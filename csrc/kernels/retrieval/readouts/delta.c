/* The delta read-out: the delta rule ("ours" in the paper's program; Schlag, Irie, Schmidhuber 2021, section 4.2;
 * Widrow and Hoff 1960):
 *
 *     k_t = phi_t / sum(phi_t)
 *     W <- W + beta_t (e_{v_t} - W k_t) k_t^T,   W_0 = 0
 *     y = W_L q / (sum(q) + eps),   eps = 1e-6
 *
 * Forward, in O(p) a token and without W. W_t = W_{t-1} (I - beta_t k_t k_t^T) + beta_t e_{v_t} k_t^T, so W_L u_L with
 * u_L = q / (sum(q) + eps) unrolls from the end; for t = L..1
 *
 *     a_t = k_t . u_t,   y[v_t] += beta_t a_t,   u_{t-1} = u_t - beta_t a_t k_t
 *
 * Backward, in ascending order of t: saved a_t, sum(phi_t) and u_t (to restore u_t from u_{t-1} by adding beta_t a_t
 * k_t would be unstable where keys are divided by a sum near zero). With w = dL/du_{t-1}, which starts as 0, and e_t =
 * dy[v_t] - w . k_t:
 *
 *     da_t = beta_t e_t,   dbeta_t = a_t e_t
 *     dk_t = da_t u_t - beta_t a_t w
 *     w   += da_t k_t                                      now dL/du_t
 *
 * Through the normalisations, with dk_t . k_t = da_t a_t - beta_t a_t (w . k_t), w before its update:
 *
 *     dphi_t = (dk_t - (dk_t . k_t)) / sum(phi_t)
 *     dq     = (w - (w . u_L)) / (sum(q) + eps)            the scalar in brackets is subtracted from every component
 *
 * 0 / 0 (all features of a key have underflowed) gives NaN, as in the equations: in all of y, because all of W becomes
 * NaN. Every token contributes to u_0, which therefore shows a NaN in any of them.
 *
 * Tokens are handled in pairs, tokens 2i and 2i + 1 of a tile. Each a_t has to wait for the u that its neighbour
 * computes, but
 *
 *     a_{t-1} = k_{t-1} . u_{t-1} = k_{t-1} . u_t - beta_t a_t (k_t . k_{t-1})
 *
 * and likewise w . k in the backward, so that three independent sums over p take the place of two dependent ones; and
 * one saved u a pair is enough, that of its second token. Keys are not divided by their totals: the scale
 * 1 / sum(phi_t) is applied to the results.
 *
 * Derived in docs/mathematics/readout_delta.md. */
#include <stdbool.h>
#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"
#include "kernels/retrieval/readouts/readout.h"

static const real EPS = (real)1e-6;
static const real SMALLEST_TO_INVERT = (real)1e-12; /* below it a product of two features may be subnormal */
/* Well above 1e-19, below which float32's total * total is subnormal. */
static const real SMALLEST_TO_SQUARE = (real)1e-15;

typedef struct {
    /* a single query */
    real *w;       /* ld */
    real *dy;      /* N */
    real *a;       /* L */
    real *total;   /* L: sum(phi_t) */
    real *inverse; /* L: 1 / total, 0 where that might overflow */
    real *product; /* L: k_t . k_{t+1} without their scales, for the first token of each pair */
    real *keys;    /* TILE x ld, normalised, for a tile where a scale does not suffice */
    real *ones;    /* TILE */
    real *u;       /* (pairs + 1) x ld: u_0, then u_t for the last token of each pair, which ends with u_L */
    /* many queries */
    real *all_keys;     /* L x ld, normalised */
    real *all_keys_t;   /* ld x padded(L) */
    real *products;     /* TILE x padded(L): of a tile's keys with its own and all later ones */
    real *written;      /* L x ld_queries: beta_t a_t */
    real *query_totals; /* ld_queries */
} DeltaScratch;

/* The last token of an odd number counts as a pair. */
static size_t pairs_of(size_t length)
{
    return (length + 1) / 2;
}

static DeltaScratch take_scratch(size_t length, size_t n_values, size_t ld, size_t ld_queries, Arena *arena)
{
    const size_t ld_t = fwm_padded(length);
    DeltaScratch d = {NULL};
    if (ld_queries == 0) {
        d.w = take(arena, ld);
        d.dy = take(arena, n_values);
        d.a = take(arena, length);
        d.total = take(arena, length);
        d.inverse = take(arena, length);
        d.product = take(arena, length);
        d.keys = take(arena, FWM_TILE * ld);
        d.ones = take(arena, FWM_TILE);
        d.u = take(arena, (pairs_of(length) + 1) * ld);
    } else {
        d.all_keys = take(arena, length * ld);
        d.all_keys_t = take(arena, ld * ld_t);
        d.products = take(arena, FWM_TILE * ld_t);
        d.written = take(arena, length * ld_queries);
        d.query_totals = take(arena, ld_queries);
    }
    return d;
}

static size_t scratch_bytes(size_t length, size_t n_values, size_t ld, size_t ld_queries)
{
    Arena arena = {0};
    take_scratch(length, n_values, ld, ld_queries, &arena);
    return arena.next;
}

static DeltaScratch scratch_at(const ReadoutSequence *s, void *scratch, size_t ld_queries)
{
    Arena arena = arena_at(scratch);
    return take_scratch(s->length, s->n_values, s->ld, ld_queries, &arena);
}

/* u_t for the last token of the pair that token t belongs to. */
static real *u_of_pair(const ReadoutSequence *s, const DeltaScratch *d, size_t t)
{
    return d->u + (t / 2 + 1) * s->ld;
}

/* 1 / total; 0 if total is too small (or NaN), so that phi has to be divided by it feature by feature. */
static inline real inverse_of(real total)
{
    return total > SMALLEST_TO_INVERT || total < -SMALLEST_TO_INVERT ? 1 / total : 0;
}

/* key = phi / total. The padding of a row stays zero even if the total is 0 or NaN. */
static inline void normalise(const ReadoutSequence *s, const real *phi, real total, real inverse, real *key)
{
    if (inverse != 0)
        for (size_t i = 0; i < s->ld; i += FWM_LANES)
            vec_store(key + i, vec_load(phi + i) * inverse);
    else
        for (size_t i = 0; i < s->ld; i++)
            key[i] = i < s->features ? phi[i] / total : 0;
}

/* The keys of a tile: k_t = scale[t] times row t of `rows`. */
typedef struct {
    const real *rows, *scale;
} TileKeys;

static TileKeys tile_keys(const ReadoutSequence *s, const DeltaScratch *d, TokenRange range)
{
    const real *phi = s->keys + range.start * s->ld, *total = d->total + range.start,
               *inverse = d->inverse + range.start;
    bool scales_do = true;
    for (size_t t = 0; t < range.count; t++)
        scales_do &= inverse[t] != 0;
    if (scales_do)
        return (TileKeys){phi, inverse};
    for (size_t t = 0; t < range.count; t++) {
        normalise(s, phi + t * s->ld, total[t], inverse[t], d->keys + t * s->ld);
        d->ones[t] = 1;
    }
    return (TileKeys){d->keys, d->ones};
}

/* k0 . x, k1 . x and k0 . k1, each in every lane: the next pair waits for what is computed from them, so a detour
 * through scalar registers would cost time. */
static inline void three_dots(size_t ld, const real *restrict k0, const real *restrict k1, const real *restrict x,
                              vec out[3])
{
    vec a[2] = {{0}, {0}}, b[2] = {{0}, {0}}, c[2] = {{0}, {0}};
    size_t i = 0;
    for (; i + 2 * FWM_LANES <= ld; i += 2 * FWM_LANES)
        for (size_t h = 0; h < 2; h++) {
            const size_t j = i + h * FWM_LANES;
            const vec k0_j = vec_load(k0 + j), k1_j = vec_load(k1 + j), x_j = vec_load(x + j);
            a[h] += k0_j * x_j;
            b[h] += k1_j * x_j;
            c[h] += k0_j * k1_j;
        }
    for (; i < ld; i += FWM_LANES) {
        const vec k0_j = vec_load(k0 + i), k1_j = vec_load(k1 + i), x_j = vec_load(x + i);
        a[0] += k0_j * x_j;
        b[0] += k1_j * x_j;
        c[0] += k0_j * k1_j;
    }
    out[0] = vec_total(a[0] + a[1]);
    out[1] = vec_total(b[0] + b[1]);
    out[2] = vec_total(c[0] + c[1]);
}

/* For rows of so many vectors or fewer, u and a pair's keys stay in AVX-512's 32 registers. */
#define MOST_VECTORS (FWM_VECTOR_BYTES == 64 ? 8 : 0)

ALWAYS_INLINE void load_vectors(size_t n, const real *from, vec *x)
{
#pragma GCC unroll 8
    for (size_t i = 0; i < n; i++)
        x[i] = vec_load(from + i * FWM_LANES);
}

/* three_dots of rows of n vectors, an even number. */
ALWAYS_INLINE void three_dots_of(size_t n, const vec *k0, const vec *k1, const vec *x, vec out[3])
{
    vec a[2] = {{0}, {0}}, b[2] = {{0}, {0}}, c[2] = {{0}, {0}};
#pragma GCC unroll 8
    for (size_t i = 0; i < n; i++) {
        a[i % 2] += k0[i] * x[i];
        b[i % 2] += k1[i] * x[i];
        c[i % 2] += k0[i] * k1[i];
    }
    out[0] = vec_total(a[0] + a[1]);
    out[1] = vec_total(b[0] + b[1]);
    out[2] = vec_total(c[0] + c[1]);
}

/* The steps of a pair, u_{t-2} = u_t - step1 k1 - step0 k0, from the sums of its rows; t: its first token in the tile.
 *
 * The next pair waits for these two steps, so they are only two operations away from the sums:
 * step1 = write1 dots1,  step0 = write0 (dots0 - step1 dots2) */
ALWAYS_INLINE void forward_steps(const ReadoutSequence *s, const DeltaScratch *d, size_t token, const real *scale,
                                 const vec dots[3], real *y, vec step[2])
{
    const real *beta = s->beta + token;
    const int32_t *values = s->values + token;
    real *a = d->a + token;
    const real write0 = scale[0] * beta[0] * scale[0], write1 = scale[1] * beta[1] * scale[1];
    step[1] = write1 * dots[1];
    step[0] = write0 * dots[0] - (write0 * dots[2] * write1) * dots[1];
    a[1] = scale[1] * dots[1][0];
    a[0] = scale[0] * (dots[0][0] - step[1][0] * dots[2][0]);
    d->product[token] = dots[2][0];
    y[values[1]] += beta[1] * a[1];
    y[values[0]] += beta[0] * a[0];
}

/* sum(phi_t) and its inverse for tokens start .. end - 1. */
ALWAYS_INLINE void find_totals(const ReadoutSequence *s, const DeltaScratch *d, size_t ld, size_t start, size_t end)
{
    for (size_t t = start; t < end; t++)
        d->inverse[t] = inverse_of(d->total[t] = sum(ld, s->keys + t * ld));
}

/* The first `tokens` tokens of a tile, an even number, from last to first in pairs. The totals of the tile before are
 * found meanwhile: each pair waits for the sums of the pair behind it, and they fill that time. */
static void forward_pairs(const ReadoutSequence *s, const DeltaScratch *d, size_t start, size_t tokens,
                          const TileKeys *keys, real *y)
{
    const size_t ld = s->ld;
    for (size_t t = tokens; t > 0;) {
        t -= 2;
        const real *restrict k0 = keys->rows + t * ld, *restrict k1 = k0 + ld, *restrict u = u_of_pair(s, d, start + t);
        real *restrict next = d->u + (start + t) / 2 * ld;
        vec dots[3], step[2];
        three_dots(ld, k0, k1, u, dots);
        if (start > 0)
            find_totals(s, d, ld, start + t - FWM_TILE, start + t - FWM_TILE + 2);
        forward_steps(s, d, start + t, keys->scale + t, dots, y, step);
        for (size_t i = 0; i < ld; i += FWM_LANES)
            vec_store(next + i, vec_load(u + i) - step[1] * vec_load(k1 + i) - step[0] * vec_load(k0 + i));
    }
}

/* The same for rows of n vectors, with u in registers. */
ALWAYS_INLINE void forward_pairs_of(size_t n, const ReadoutSequence *s, const DeltaScratch *d, size_t start,
                                    size_t tokens, const TileKeys *keys, real *y)
{
    const size_t ld = n * FWM_LANES;
    vec u[8], k0[8], k1[8];
    load_vectors(n, d->u + (start + tokens) / 2 * ld, u);
    for (size_t t = tokens; t > 0;) {
        t -= 2;
        real *next = d->u + (start + t) / 2 * ld;
        vec dots[3], step[2];
        load_vectors(n, keys->rows + t * ld, k0);
        load_vectors(n, keys->rows + (t + 1) * ld, k1);
        three_dots_of(n, k0, k1, u, dots);
        if (start > 0)
            find_totals(s, d, ld, start + t - FWM_TILE, start + t - FWM_TILE + 2);
        forward_steps(s, d, start + t, keys->scale + t, dots, y, step);
#pragma GCC unroll 8
        for (size_t i = 0; i < n; i++) {
            u[i] = u[i] - step[1] * k1[i] - step[0] * k0[i];
            vec_store(next + i * FWM_LANES, u[i]);
        }
    }
}

static void forward_tile(const ReadoutSequence *s, const DeltaScratch *d, TokenRange range, real *y)
{
    const size_t ld = s->ld, last = range.count - 1;
    const TileKeys keys = tile_keys(s, d, range);
    if (range.count % 2) {
        const size_t token = range.start + last;
        const real *restrict k = keys.rows + last * ld, *restrict u = u_of_pair(s, d, token);
        real *restrict next = d->u + token / 2 * ld;
        const real a = d->a[token] = keys.scale[last] * dot(ld, k, u), beta = s->beta[token];
        y[s->values[token]] += beta * a;
        const real step = beta * a * keys.scale[last];
        for (size_t i = 0; i < ld; i += FWM_LANES)
            vec_store(next + i, vec_load(u + i) - step * vec_load(k + i));
    }
    const size_t tokens = range.count / 2 * 2;
    if (MOST_VECTORS >= 8 && ld == 8 * FWM_LANES)
        forward_pairs_of(8, s, d, range.start, tokens, &keys, y);
    else if (MOST_VECTORS >= 4 && ld == 4 * FWM_LANES)
        forward_pairs_of(4, s, d, range.start, tokens, &keys, y);
    else
        forward_pairs(s, d, range.start, tokens, &keys, y);
    if (range.start > 0)
        find_totals(s, d, ld, range.start - FWM_TILE + tokens, range.start);
}

static TokenRange tile_range(const ReadoutSequence *s, size_t tile)
{
    return (TokenRange){tile * FWM_TILE, fwm_min(FWM_TILE, s->length - tile * FWM_TILE)};
}

/* All of y becomes NaN if x has a NaN. */
static void spread_nan(size_t ld, const real *x, size_t n_values, real *y)
{
    real bad = 0;
    for (size_t i = 0; i < ld; i++)
        bad = x[i] != x[i] ? x[i] : bad;
    for (size_t n = 0; n < n_values && bad != 0; n++)
        y[n] = bad;
}

static void forward(const ReadoutSequence *s, void *scratch, real *y)
{
    const DeltaScratch d = scratch_at(s, scratch, 0);
    const size_t ld = s->ld;
    const real query_total = sum(ld, s->query) + EPS;
    normalise(s, s->query, query_total, inverse_of(query_total), d.u + pairs_of(s->length) * ld);
    memset(y, 0, s->n_values * sizeof(real));
    const size_t tiles = fwm_tiles(s->length, FWM_TILE);
    if (tiles > 0)
        find_totals(s, &d, ld, (tiles - 1) * FWM_TILE, s->length);
    for (size_t tile = tiles; tile-- > 0;) {
        const TokenRange range = tile_range(s, tile);
        forward_tile(s, &d, range, y);
    }
    spread_nan(s->ld, d.u, s->n_values, y);
}

static size_t backward_begin(const ReadoutSequence *s, void *scratch, const real *y, const real *dy)
{
    (void)y;
    const DeltaScratch d = scratch_at(s, scratch, 0);
    memcpy(d.dy, dy, s->n_values * sizeof(real));
    memset(d.w, 0, s->ld * sizeof(real));
    return fwm_tiles(s->length, FWM_TILE);
}

/* Whether the backward of this token's quotient phi / total is computed feature by feature (small_total_backward).
 *
 * The PyTorch of the published runs computed the gradient of the quotient's denominator as -dk phi / (total * total).
 * In float32 that square underflows long before the total does: a total below 4e-23 makes the gradient infinite or NaN,
 * and this ends the published FAVOR+ runs in NaN. as_published computes it in the same way wherever that makes a
 * difference. */
static inline bool has_small_total(const ReadoutSequence *s, const DeltaScratch *d, size_t token)
{
    return d->inverse[token] == 0 || (s->as_published && FWM_FABS(d->total[token]) < SMALLEST_TO_SQUARE);
}

/* The scalars of a token's gradients, once w . k_t is known: dk_t = da u_t - beta_a w, and dphi_t = (dk_t - dk_k)
 * inverse. */
typedef struct {
    real da, beta_a, dk_k, inverse;
} TokenGradient;

static inline TokenGradient token_gradient(const ReadoutSequence *s, const DeltaScratch *d, size_t token, real w_k,
                                           real *dbeta)
{
    const real a = d->a[token], beta = s->beta[token], error = d->dy[s->values[token]] - w_k;
    const real da = beta * error, beta_a = beta * a;
    *dbeta = a * error;
    if (has_small_total(s, d, token)) /* dk_t itself, for small_total_backward */
        return (TokenGradient){da, beta_a, 0, 1};
    return (TokenGradient){da, beta_a, da * a - beta_a * w_k, d->inverse[token]};
}

static void backward_pair(const ReadoutSequence *s, const DeltaScratch *d, const TileKeys *keys, size_t start, size_t t,
                          real *restrict dk0, real *dbeta)
{
    const size_t ld = s->ld, token = start + t;
    const real *restrict u1 = u_of_pair(s, d, token);
    const real *restrict k0 = keys->rows + t * ld, *restrict k1 = k0 + ld, *scale = keys->scale + t;
    real *restrict w = d->w, *restrict dk1 = dk0 + ld;
    vec dots[3];
    three_dots(ld, k0, k1, w, dots);
    /* As in the forward, with step_t = scale_t da_t = scale_t beta_t (dy[v_t] - w . k_t):
     * w . k1 = scale1 (dots1 + step0 product) */
    const real product = d->product[token], write0 = scale[0] * s->beta[token], write1 = scale[1] * s->beta[token + 1];
    const real dy0 = d->dy[s->values[token]], dy1 = d->dy[s->values[token + 1]];
    const vec step0 = write0 * dy0 - (write0 * scale[0]) * dots[0];
    const vec step1 = (write1 * dy1 - (write1 * scale[1]) * dots[1]) - (write1 * scale[1] * product) * step0;
    const TokenGradient g0 = token_gradient(s, d, token, scale[0] * dots[0][0], dbeta + t);
    const TokenGradient g1 =
        token_gradient(s, d, token + 1, scale[1] * (dots[1][0] + step0[0] * product), dbeta + t + 1);
    const real removed1 = g1.beta_a * scale[1];
    for (size_t i = 0; i < ld; i += FWM_LANES) {
        const vec k0_i = vec_load(k0 + i), k1_i = vec_load(k1 + i), u1_i = vec_load(u1 + i), w0 = vec_load(w + i);
        const vec u0_i = u1_i - removed1 * k1_i, w1 = w0 + step0 * k0_i;
        vec_store(dk0 + i, (g0.da * u0_i - g0.beta_a * w0 - g0.dk_k) * g0.inverse);
        vec_store(dk1 + i, (g1.da * u1_i - g1.beta_a * w1 - g1.dk_k) * g1.inverse);
        vec_store(w + i, w1 + step1 * k1_i);
    }
}

static void backward_single(const ReadoutSequence *s, const DeltaScratch *d, const TileKeys *keys, size_t start,
                            size_t t, real *restrict dk, real *dbeta)
{
    const size_t ld = s->ld;
    const real *restrict u = u_of_pair(s, d, start + t);
    const real *restrict key = keys->rows + t * ld;
    real *restrict w = d->w;
    const TokenGradient g = token_gradient(s, d, start + t, keys->scale[t] * dot(ld, w, key), dbeta + t);
    const real step = g.da * keys->scale[t];
    for (size_t i = 0; i < ld; i += FWM_LANES) {
        const vec w_i = vec_load(w + i);
        vec_store(dk + i, (g.da * vec_load(u + i) - g.beta_a * w_i - g.dk_k) * g.inverse);
        vec_store(w + i, w_i + step * vec_load(key + i));
    }
}

/* dk (p) becomes dphi in place, feature by feature, for a total so small that its inverse or its square is not safe. */
static void small_total_backward(const ReadoutSequence *s, const DeltaScratch *d, size_t token, const real *key,
                                 real scale, real *dk)
{
    const real *phi = s->keys + token * s->ld;
    const real total = d->total[token];
    real of_total = 0;
    for (size_t i = 0; i < s->features; i++)
        of_total -= s->as_published ? dk[i] * phi[i] / (total * total) : dk[i] * (scale * key[i]);
    for (size_t i = 0; i < s->features; i++)
        dk[i] = s->as_published ? dk[i] / total + of_total : (dk[i] + of_total) / total;
}

static TokenRange backward_tile(const ReadoutSequence *s, void *scratch, size_t tile, real *dkeys, real *dbeta)
{
    const DeltaScratch d = scratch_at(s, scratch, 0);
    const size_t ld = s->ld;
    const TokenRange range = tile_range(s, tile);
    const TileKeys keys = tile_keys(s, &d, range);
    size_t t = 0;
    for (; t + 2 <= range.count; t += 2)
        backward_pair(s, &d, &keys, range.start, t, dkeys + t * ld, dbeta);
    if (t < range.count)
        backward_single(s, &d, &keys, range.start, t, dkeys + t * ld, dbeta);
    for (t = 0; t < range.count; t++)
        if (has_small_total(s, &d, range.start + t))
            small_total_backward(s, &d, range.start + t, keys.rows + t * ld, keys.scale[t], dkeys + t * ld);
    return range;
}

static void backward_end(const ReadoutSequence *s, void *scratch, real *dquery)
{
    const DeltaScratch d = scratch_at(s, scratch, 0);
    const real w_u = dot(s->ld, d.w, d.u + pairs_of(s->length) * s->ld), total = sum(s->ld, s->query) + EPS;
    for (size_t i = 0; i < s->ld; i++)
        dquery[i] = (d.w[i] - w_u) / total;
}

/* Many queries at once, one a column: a_t = k_t . u_L - sum_{s > t} beta_s a_s (k_s . k_t), by back substitution; the
 * part of the sum that lies in later tiles is a matrix product. */
static void answer(const ReadoutSequence *s, void *scratch, const real *queries, size_t ld_queries, real *y)
{
    const size_t L = s->length, ld = s->ld, ld_t = fwm_padded(L);
    const DeltaScratch d = scratch_at(s, scratch, ld_queries);
    real *keys = d.all_keys, *keys_t = d.all_keys_t, *products = d.products, *written = d.written;
    real *total = d.query_totals;
    for (size_t t = 0; t < L; t++) {
        const real key_total = sum(ld, s->keys + t * ld);
        normalise(s, s->keys + t * ld, key_total, inverse_of(key_total), keys + t * ld);
    }
    memset(keys_t, 0, ld * ld_t * sizeof(real));
    transpose(L, ld, keys, ld, keys_t, ld_t);
    memset(total, 0, ld_queries * sizeof(real));
    for (size_t i = 0; i < s->features; i++)
        add(ld_queries, queries + i * ld_queries, total);
    memset(y, 0, s->n_values * ld_queries * sizeof(real));
    for (size_t tile = fwm_tiles(L, FWM_TILE); tile-- > 0;) {
        const size_t start = tile * FWM_TILE, end = fwm_min(start + FWM_TILE, L);
        real *tile_written = written + start * ld_queries;
        gemm(end - start, ld_queries, ld, rows_of(keys + start * ld, ld), queries, ld_queries, 0, NULL, tile_written,
             ld_queries);
        gemm(end - start, ld_t - start, ld, rows_of(keys + start * ld, ld), keys_t + start, ld_t, 0, NULL, products,
             ld_t);
        for (size_t i = 0; i < (end - start) * ld_t; i++)
            products[i] = -products[i];
        gemm(end - start, ld_queries, L - end, rows_of(products + end - start, ld_t), written + end * ld_queries,
             ld_queries, 1, tile_written, tile_written, ld_queries);
        for (size_t t = end; t-- > start;) {
            real *row = written + t * ld_queries;
            for (size_t later = t + 1; later < end; later++)
                add_scaled(ld_queries, products[(t - start) * ld_t + later - start], written + later * ld_queries, row);
            for (size_t c = 0; c < ld_queries; c++)
                row[c] *= s->beta[t];
            add(ld_queries, row, y + (size_t)s->values[t] * ld_queries);
        }
    }
    for (size_t t = 0; t < L; t++) /* a NaN in a_t makes the whole column NaN, as in forward */
        for (size_t c = 0; c < ld_queries; c++)
            total[c] =
                written[t * ld_queries + c] != written[t * ld_queries + c] ? written[t * ld_queries + c] : total[c];
    for (size_t n = 0; n < s->n_values; n++)
        for (size_t c = 0; c < ld_queries; c++)
            y[n * ld_queries + c] /= total[c] + EPS;
}

const Readout FWM_NAME(readout_delta) = {
    .info = {.name = "ours",
             .function = "delta_rule",
             .uses_map = 1,
             .uses_beta = 1,
             .summary = "delta rule: a write replaces what its key held before"},
    .scratch = scratch_bytes,
    .forward = forward,
    .backward_begin = backward_begin,
    .backward_tile = backward_tile,
    .backward_end = backward_end,
    .answer = answer,
};
