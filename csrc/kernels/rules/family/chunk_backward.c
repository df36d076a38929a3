/* The part of a chunk's backward that needs no state: from sums over the columns to the gradients of keys, queries,
 * strengths and gates.
 *
 * Forward (chunk.h), for each column of the state, with A_t = a_0 .. a_t, D_ts = a_{s+1} .. a_t, D_ts = 1 for t = s:
 *
 *     X0_t = A_t x_t,   K1_s = D_{C-1,s} k_s,   scores_ts = sum_i x_ti D_tsi k_si
 *
 * The columns (slab_backward.c) give dx0, dk1, dscores and ddecay = sum_j S0_ij dS_ij. Then
 *
 *     dx_t = A_t dx0_t + sum_s dscores_ts D_ts k_s
 *     dk_s = D_{C-1,s} dk1_s + sum_t D_ts Z_ts,                               Z_ts = sum over readers of dscores_ts x_t
 *
 * dg_t collects every path from a write (or S0) before t to a reader (or the chunk's end) at t or later, as <dS', S'>
 * does in the recurrence, term by term and without differences:
 *
 *     dg_t = decay ddecay + sum_{s < t} k1_s dk1_s + sum_{r >= t} x0_r dx0_r + sum_{s < t <= r} dscores_rs x_r D_rs k_s
 *
 * element by element. A scalar gate takes the sum over i, where the last term is that of scores_rs dscores_rs. For a
 * gate a channel Y_ts = Z_ts + a_{t+1} Y_{t+1,s} runs backwards, and (D_ts k_s) Y_ts is the share of the key s in it;
 * a_{s+1} Y_{s+1,s} + Z_ss completes dk_s.
 *
 * Normalised reading: o = y / den, den_t = x_t . z_t + eps, and the columns were given do / den. So
 *
 *     dden_t = -(do . y) / den^2 = -(x0_t . dx0_t + sum_s scores_ts dscores_ts) / den_t
 *
 * is added to dscores_ts (s <= t), and, times z0 and x_t, to dx_t and dz0.
 *
 * Derived in docs/mathematics/rules.md. */
#include "kernels/rules/family/chunk.h"

#include <string.h>

#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/rules/tokens.h"

typedef struct {
    real *dx, *dk; /* M x ld, C x ld: at first of X0 and K1 */
    real *dg;      /* C x ld, or C */
    real *decayed; /* M x C: dscores D, scalar gate */
} ChunkBackwardScratch;

static ChunkBackwardScratch divide_scratch(const FamilyShape *s, real *scratch)
{
    const size_t block = CHUNK * s->ld, M = s->readers;
    return (ChunkBackwardScratch){scratch, scratch + M * block, scratch + (M + 1) * block, scratch + (M + 2) * block};
}

size_t chunk_backward_scratch(const FamilyShape *s)
{
    const size_t block = CHUNK * s->ld, scores = s->readers * CHUNK * CHUNK;
    return ((s->readers + 2) * block + scores) * sizeof(real);
}

void add_chunk_gradients(const FamilyShape *s, const ChunkGradients *part, ChunkGradients *total)
{
    add(s->ld * s->readers * CHUNK, part->dx0, total->dx0);
    add(s->ld * CHUNK, part->dk1, total->dk1);
    add(s->readers * CHUNK * CHUNK, part->dscores, total->dscores);
    add(CHUNK, part->dbeta, total->dbeta);
    if (s->gate != FWM_NO_GATE)
        add(s->ld, part->ddecay, total->ddecay);
}

static void apply_causal_mask(const FamilyShape *s, real *dscores)
{
    for (size_t m = 0; m < s->readers * CHUNK; m++)
        for (size_t i = 0; i < CHUNK; i += FWM_LANES)
            vec_store(dscores + m * CHUNK + i, where_seen(s, m, i, vec_load(dscores + m * CHUNK + i)));
}

/* Adds what follows from dden to dscores, dx0 (it becomes part of dx, because there is no gate) and dz; and to dk the
 * gradient of the later sums of keys. */
static void denominators_backward(const Chunk *c, real *dscores, const ChunkBackwardScratch *w, real *dz)
{
    const size_t ld = c->shape.ld;
    for (size_t s = 0; s < c->n; s++)
        add(ld, dz, w->dk + s * ld);
    for (size_t m = c->shape.erases * CHUNK; m < c->shape.readers * CHUNK; m++) {
        const size_t t = m % CHUNK;
        real *row = dscores + m * CHUNK;
        const real dden =
            -(dot(ld, c->x0 + m * ld, w->dx + m * ld) + dot(CHUNK, c->scores + m * CHUNK, row)) * c->reciprocal[m];
        if (t >= c->n)
            continue;
        for (size_t s = 0; s <= t; s++)
            row[s] += dden;
        add_scaled(ld, dden, c->z0, w->dx + m * ld);
        add_scaled(ld, dden, c->x + m * ld, dz);
    }
}

/* Without a gate, or with a scalar one, decays are numbers: D_ts factors out of the products over i. */
static void products_backward(const Chunk *c, const real *dscores, const ChunkBackwardScratch *w)
{
    const FamilyShape *s = &c->shape;
    const size_t ld = s->ld, M = s->readers * CHUNK;
    const real *decayed = dscores;
    if (s->gate == FWM_SCALAR_GATE) {
        for (size_t r = 0; r < s->readers; r++)
            multiply_row(CHUNK * CHUNK, c->decays, dscores + r * CHUNK * CHUNK, w->decayed + r * CHUNK * CHUNK);
        for (size_t m = 0; m < M; m++)
            scale(ld, c->from_start[m % CHUNK], w->dx + m * ld, w->dx + m * ld);
        for (size_t t = 0; t < CHUNK; t++)
            scale(ld, c->decays[(CHUNK - 1) * CHUNK + t], w->dk + t * ld, w->dk + t * ld);
        decayed = w->decayed;
    }
    gemm(M, ld, CHUNK, rows_of(decayed, CHUNK), c->k, ld, 1, w->dx, w->dx, ld);
    gemm(CHUNK, ld, M, transposed(decayed, CHUNK), c->x, ld, 1, w->dk, w->dk, ld);
}

/* out_t = x_t . y_t, C rows */
static void dots_of_chunk(size_t ld, const real *x, const real *y, real *out)
{
    for (size_t t = 0; t < CHUNK; t += FWM_LANES)
        dots(FWM_LANES, ld, x + t * ld, y + t * ld, ld, out + t);
}

/* dg (C) of a scalar gate, from dx0 and dk1. */
static void scalar_gate_backward(const Chunk *c, const real *dscores, const ChunkGradients *sum_over_columns,
                                 const ChunkBackwardScratch *w)
{
    const size_t ld = c->shape.ld, readers = c->shape.readers;
    /* of readers: what they read of S0, and their pairs with key s; summed over those from t on */
    real reads[CHUNK] = {0}, pairs[CHUNK][CHUNK], of_reader[CHUNK], writes[CHUNK];
    for (size_t r = 0; r < readers; r++) {
        dots_of_chunk(ld, c->x0 + r * CHUNK * ld, w->dx + r * CHUNK * ld, of_reader);
        add(CHUNK, of_reader, reads);
    }
    dots_of_chunk(ld, c->k1, w->dk, writes);
    for (size_t s = 0; s < CHUNK; s += FWM_LANES) {
        vec later = {0};
        for (size_t t = CHUNK; t-- > 0; vec_store(pairs[t] + s, later))
            for (size_t m = t; m < readers * CHUNK; m += CHUNK)
                later += vec_load(dscores + m * CHUNK + s) * vec_load(c->scores + m * CHUNK + s);
    }
    real later = dot(ld, c->decay, sum_over_columns->ddecay), before = 0;
    for (size_t t = CHUNK; t-- > 0;) {
        w->dg[t] = later += reads[t];
        for (size_t s = 0; s < t; s++)
            w->dg[t] += pairs[t][s];
    }
    for (size_t t = 0; t < CHUNK; t++) {
        w->dg[t] += before;
        before += writes[t];
    }
}

/* dg (C x ld) of a channel gate, from channel i on: all but the pairs inside the chunk. */
static inline void paths_backward(const Chunk *c, size_t i, const real *ddecay, const ChunkBackwardScratch *w)
{
    const size_t ld = c->shape.ld, M = c->shape.readers * CHUNK;
    vec later = vec_load(c->decay + i) * vec_load(ddecay + i), before = {0};
    for (size_t t = CHUNK; t-- > 0; vec_store(w->dg + t * ld + i, later))
        for (size_t m = t; m < M; m += CHUNK)
            later += vec_load(c->x0 + m * ld + i) * vec_load(w->dx + m * ld + i);
    for (size_t t = 0; t < CHUNK; t++) {
        vec_store(w->dg + t * ld + i, vec_load(w->dg + t * ld + i) + before);
        before += vec_load(c->k1 + t * ld + i) * vec_load(w->dk + t * ld + i);
    }
}

/* dx, from channel i on. Leaves the keys as they reach each later token: D_ts k_s for s < t. */
static inline void readers_backward(const Chunk *c, size_t i, const real *dscores, const ChunkBackwardScratch *w,
                                    vec keys[CHUNK][CHUNK])
{
    const size_t ld = c->shape.ld;
    vec key[CHUNK], upto = {0};
    upto += 1;
#pragma GCC unroll 16
    for (size_t t = 0; t < CHUNK; t++) {
        const vec a = vec_load(c->a + t * ld + i);
        upto *= a;
        key[t] = vec_load(c->k + t * ld + i);
#pragma GCC unroll 16
        for (size_t s = 0; s < t; s++)
            keys[t][s] = key[s] *= a;
        for (size_t m = t; m < c->shape.readers * CHUNK; m += CHUNK) {
            vec dx = upto * vec_load(w->dx + m * ld + i);
#pragma GCC unroll 16
            for (size_t s = 0; s <= t; s++) /* dscores is 0 where an erase key does not see its own token */
                dx += dscores[m * CHUNK + s] * key[s];
            vec_store(w->dx + m * ld + i, dx);
        }
    }
}

/* dk, and the pairs' share of dg, from channel i on. y_s: Y_ts of the derivation. */
static inline void keys_backward(const Chunk *c, size_t i, const real *dscores, const ChunkBackwardScratch *w,
                                 const vec keys[CHUNK][CHUNK])
{
    const size_t ld = c->shape.ld;
    vec y[CHUNK], after = {0};
    after += 1;
#pragma GCC unroll 16
    for (size_t s = 0; s < CHUNK; s++)
        y[s] = (vec){0};
#pragma GCC unroll 16
    for (size_t back = 0; back < CHUNK; back++) {
        const size_t t = CHUNK - 1 - back;
        for (size_t m = t; m < c->shape.readers * CHUNK; m += CHUNK) {
            const vec x = vec_load(c->x + m * ld + i);
#pragma GCC unroll 16
            for (size_t s = 0; s <= t; s++)
                y[s] += dscores[m * CHUNK + s] * x;
        }
        const vec a = vec_load(c->a + t * ld + i);
        vec dg = vec_load(w->dg + t * ld + i);
#pragma GCC unroll 16
        for (size_t s = 0; s < t; s++) {
            dg += keys[t][s] * y[s];
            y[s] *= a;
        }
        vec_store(w->dg + t * ld + i, dg);
        vec_store(w->dk + t * ld + i, after * vec_load(w->dk + t * ld + i) + y[t]);
        after *= a;
    }
}

static void channels_backward(const Chunk *c, const real *dscores, const real *ddecay, const ChunkBackwardScratch *w)
{
    vec keys[CHUNK][CHUNK];
    for (size_t i = 0; i < c->shape.ld; i += FWM_LANES) {
        paths_backward(c, i, ddecay, w);
        readers_backward(c, i, dscores, w, keys);
        keys_backward(c, i, dscores, w, keys);
    }
}

void chunk_backward(const ValueHead *h, size_t t0, const Chunk *c, const ChunkGradients *sums, real *dz, void *scratch)
{
    const FamilyShape *s = &c->shape;
    const size_t ld = s->ld, M = s->readers * CHUNK;
    const ChunkBackwardScratch w = divide_scratch(s, scratch);
    transpose(ld, M, sums->dx0, M, w.dx, ld);
    transpose(ld, CHUNK, sums->dk1, CHUNK, w.dk, ld);
    apply_causal_mask(s, sums->dscores);
    if (s->normalize)
        denominators_backward(c, sums->dscores, &w, dz);
    if (s->gate == FWM_SCALAR_GATE)
        scalar_gate_backward(c, sums->dscores, sums, &w);
    if (s->gate == FWM_CHANNEL_GATE)
        channels_backward(c, sums->dscores, sums->ddecay, &w);
    else
        products_backward(c, sums->dscores, &w);
    const size_t queries = s->erases * CHUNK * ld;
    const LoadedRows k = {c->k, c->k_factors, ld, CHUNK * ld}, q = {c->x + queries, c->q_factors, ld, CHUNK * ld};
    store_tokens(h, t0, c->n, ld, &k, &q, sums->dbeta, w.dk, w.dx, w.dx + queries);
    for (size_t t = 0; t < c->n; t++) {
        if (s->gate == FWM_SCALAR_GATE)
            *token(h->dg, t0 + t) = w.dg[t];
        else if (s->gate == FWM_CHANNEL_GATE)
            memcpy(token(h->dg, t0 + t), w.dg + t * ld, h->K * sizeof(real));
    }
}
