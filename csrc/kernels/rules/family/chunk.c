/* The part of a chunk that needs no state: see chunk.h. Derived in docs/mathematics/rules.md. */
#include "kernels/rules/family/chunk.h"

#include <string.h>

#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/base/vmath.h"
#include "kernels/rules/tokens.h"

Chunk take_chunk(const FamilyShape *s, Arena *arena)
{
    const size_t M = s->readers * CHUNK, ld = s->ld;
    Chunk c = {.shape = *s, .k = take(arena, CHUNK * ld), .x = take(arena, M * ld)};
    const bool gated = s->gate != FWM_NO_GATE;
    c.k_factors = take(arena, CHUNK);
    c.q_factors = take(arena, M);
    c.k1 = gated ? take(arena, CHUNK * ld) : c.k;
    c.x0 = gated ? take(arena, M * ld) : c.x;
    c.k1_t = take(arena, CHUNK * ld);
    c.k_t = s->gate == FWM_SCALAR_GATE ? take(arena, CHUNK * ld) : c.k1_t;
    c.x0_t = take(arena, M * ld);
    c.g = take(arena, CHUNK);
    c.from_start = take(arena, CHUNK);
    c.decays = take(arena, CHUNK * CHUNK);
    c.a = take(arena, s->gate == FWM_CHANNEL_GATE ? CHUNK * ld : 0);
    c.decay = take(arena, ld);
    if (gated)
        c.in_two = (Decay){take(arena, ld), take_bytes(arena, ld * sizeof(lane_number))};
    c.scores = take(arena, M * CHUNK);
    c.qk = take(arena, M * CHUNK);
    c.z0 = take(arena, ld);
    c.reciprocal = take(arena, M);
    return c;
}

ChunkGradients take_chunk_gradients(const FamilyShape *s, Arena *arena)
{
    const size_t M = s->readers * CHUNK;
    return (ChunkGradients){
        .dx0 = take(arena, s->ld * M),
        .dk1 = take(arena, s->ld * CHUNK),
        .dscores = take(arena, M * CHUNK),
        .ddecay = take(arena, s->ld),
        .dbeta = take(arena, CHUNK),
    };
}

static void multiply_row(size_t ld, const real *x, const real *y, real *out)
{
    for (size_t i = 0; i < ld; i += FWM_LANES)
        vec_store(out + i, vec_load(x + i) * vec_load(y + i));
}

static void clear_rows(size_t from, size_t ld, real *block)
{
    memset(block + from * ld, 0, (CHUNK - from) * ld * sizeof(real));
}

/* What the value heads of one key and query head share: keys, queries and, unless the gate is one of channels, their
 * products. Rows after the last token are zeros, which read and write nothing. */
static void load_shared(const ValueHead *h, size_t t0, Chunk *c)
{
    const FamilyShape *s = &c->shape;
    const size_t ld = s->ld, block = CHUNK * ld, queries = s->readers - s->erases;
    real *q = c->x + s->erases * block;
    load_keys(h, t0, c->n, ld, c->k, c->k_factors);
    clear_rows(c->n, ld, c->k);
    if (s->reads)
        load_queries(h, t0, c->n, ld, q, ld, block, c->q_factors);
    for (size_t r = 0; r < queries; r++)
        clear_rows(c->n, ld, q + r * block);
    if (s->gate == FWM_CHANNEL_GATE)
        return;
    transpose(CHUNK, ld, c->k, ld, c->k_t, CHUNK);
    gemm(queries * CHUNK, CHUNK, s->K, rows_of(q, ld), c->k_t, CHUNK, 0, NULL, c->qk, CHUNK);
}

/* Erase keys, and gates, which are 0 after the last token. Gates of channels are put where a will be. */
static void load_head(const ValueHead *h, size_t t0, Chunk *c)
{
    const FamilyShape *s = &c->shape;
    const size_t ld = s->ld;
    load_erase_keys(h, t0, c->n, ld, c->k, c->x);
    if (s->erases)
        clear_rows(c->n, ld, c->x);
    if (s->gate == FWM_NO_GATE)
        return;
    real *g = s->gate == FWM_CHANNEL_GATE ? c->a : c->g;
    load_gates(h, t0, c->n, ld, g);
    clear_rows(c->n, s->gate == FWM_CHANNEL_GATE ? ld : 1, g);
}

/* Scores as products of whole blocks, X K^T, times the decays. The causal mask sets what lies in the future to 0,
 * instead of multiplying by 0: a NaN there must not reach an earlier token. */
static void scores_of_blocks(Chunk *c)
{
    const size_t M = c->shape.readers * CHUNK, first = c->shape.erases * CHUNK;
    gemm(first, CHUNK, c->shape.K, rows_of(c->x, c->shape.ld), c->k_t, CHUNK, 0, NULL, c->scores, CHUNK);
    for (size_t m = 0; m < M; m++) {
        const size_t t = m % CHUNK, seen = t + (m >= first);
        const real *from = m < first ? c->scores + m * CHUNK : c->qk + (m - first) * CHUNK;
        real *row = c->scores + m * CHUNK;
        for (size_t s = 0; s < CHUNK; s++)
            row[s] = s >= seen ? 0 : c->shape.gate == FWM_SCALAR_GATE ? from[s] * c->decays[t * CHUNK + s] : from[s];
    }
}

/* from_start, decays and the chunk's decay. What lies in the future is 0: the backward multiplies it by the zeros of
 * dscores. */
static void decays_of_scalars(Chunk *c)
{
    double a[CHUNK], product = 1, row[CHUNK] = {0}; /* row: a_{s+1} .. a_t */
    for (size_t t = 0; t < CHUNK; t++)
        a[t] = exp_in_double(c->g[t]);
    for (size_t t = 0; t < CHUNK; t++) {
        for (size_t s = 0; s < CHUNK; s++)
            row[s] = s == t ? 1 : row[s] * a[t];
        for (size_t s = 0; s < CHUNK; s++)
            c->decays[t * CHUNK + s] = s > t ? 0 : (real)row[s];
        product *= a[t];
        c->from_start[t] = (real)product;
    }
    const bool near_one = product > 0.7 && product < 1.4;
    real *rest = (real *)c->in_two.rest;
    lane_number *one_more = (lane_number *)c->in_two.one_more;
    for (size_t i = 0; i < c->shape.ld; i++) {
        c->decay[i] = (real)product;
        rest[i] = (real)(product - near_one);
        one_more[i] = -(lane_number)near_one;
    }
}

static void prepare_scalar(Chunk *c)
{
    const size_t ld = c->shape.ld;
    decays_of_scalars(c);
    for (size_t s = 0; s < CHUNK; s++)
        scale(ld, c->decays[(CHUNK - 1) * CHUNK + s], c->k + s * ld, c->k1 + s * ld);
    for (size_t m = 0; m < c->shape.readers * CHUNK; m++)
        scale(ld, c->from_start[m % CHUNK], c->x + m * ld, c->x0 + m * ld);
    scores_of_blocks(c);
    for (size_t i = 0; i < ld; i++)
        multiply_row(CHUNK, c->decays + (CHUNK - 1) * CHUNK, c->k_t + i * CHUNK, c->k1_t + i * CHUNK);
}

/* a, and the two parts of the chunk's decay. At first decay holds the sums of gates, and rest what the products have
 * lost in rounding. */
static void decays_of_channels(Chunk *c)
{
    const size_t ld = c->shape.ld;
    real *restrict sums = c->decay, *restrict rest = (real *)c->in_two.rest;
    lane_number *restrict one_more = (lane_number *)c->in_two.one_more;
    memset(sums, 0, ld * sizeof(real));
    memset(rest, 0, ld * sizeof(real));
    for (size_t t = 0; t < CHUNK; t++) {
        real *restrict a = c->a + t * ld;
#pragma omp simd
        for (size_t i = 0; i < ld; i++) {
            sums[i] += a[i];
            a[i] = exp_of_product(a[i], &rest[i]);
        }
    }
#pragma omp simd
    for (size_t i = 0; i < ld; i++)
        one_more[i] = exp_in_two(sums[i], &rest[i]);
}

/* key *= a, and its products with two readers. */
static inline void decay_and_read(size_t ld, const real *a, real *key, const real *x, const real *y, real *with_x,
                                  real *with_y)
{
    vec s0 = {0}, s1 = {0}, r0 = {0}, r1 = {0};
    size_t i = 0;
    for (; i + 2 * FWM_LANES <= ld; i += 2 * FWM_LANES) {
        const vec k0 = vec_load(a + i) * vec_load(key + i),
                  k1 = vec_load(a + i + FWM_LANES) * vec_load(key + i + FWM_LANES);
        vec_store(key + i, k0);
        vec_store(key + i + FWM_LANES, k1);
        s0 += vec_load(x + i) * k0;
        r0 += vec_load(y + i) * k0;
        s1 += vec_load(x + i + FWM_LANES) * k1;
        r1 += vec_load(y + i + FWM_LANES) * k1;
    }
    for (; i < ld; i += FWM_LANES) {
        const vec k0 = vec_load(a + i) * vec_load(key + i);
        vec_store(key + i, k0);
        s0 += vec_load(x + i) * k0;
        r0 += vec_load(y + i) * k0;
    }
    *with_x = vec_sum(s0 + s1);
    *with_y = vec_sum(r0 + r1);
}

/* A channel gate stands inside the products, so each key is decayed from token to token. */
static void prepare_channels(Chunk *c)
{
    const size_t ld = c->shape.ld, readers = c->shape.readers, n = c->n;
    decays_of_channels(c);
    memset(c->scores, 0, readers * CHUNK * CHUNK * sizeof(real));
    memcpy(c->k1, c->k, CHUNK * ld * sizeof(real));
    for (size_t s = 0; s < n; s++) {
        real *key = c->k1 + s * ld;
        for (size_t r = c->shape.erases; r < readers; r++)
            c->scores[(r * CHUNK + s) * CHUNK + s] = dot(ld, c->x + (r * CHUNK + s) * ld, key);
        for (size_t t = s + 1; t < n; t++) {
            real *scores = c->scores + t * CHUNK + s, *x = c->x + t * ld;
            if (readers == 2) {
                decay_and_read(ld, c->a + t * ld, key, x, x + CHUNK * ld, scores, scores + CHUNK * CHUNK);
                continue;
            }
            multiply_row(ld, c->a + t * ld, key, key);
            for (size_t r = 0; r < readers; r++)
                scores[r * CHUNK * CHUNK] = dot(ld, x + r * CHUNK * ld, key);
        }
    }
    memcpy(c->decay, c->a, ld * sizeof(real));
    for (size_t t = 0; t < CHUNK; t++) {
        if (t > 0)
            multiply_row(ld, c->a + t * ld, c->decay, c->decay);
        for (size_t r = 0; r < readers; r++)
            multiply_row(ld, c->decay, c->x + (r * CHUNK + t) * ld, c->x0 + (r * CHUNK + t) * ld);
    }
    transpose(CHUNK, ld, c->k1, ld, c->k1_t, CHUNK);
}

/* What the queries read is divided by x_t . z_t + eps, z_t = z0 + k_0 + .. + k_t: the sum of the scores is x_t . (z_t -
 * z0). */
static void denominators(const ValueHead *h, Chunk *c)
{
    const size_t ld = c->shape.ld;
    for (size_t m = c->shape.erases * CHUNK; m < c->shape.readers * CHUNK; m++)
        c->reciprocal[m] = 1 / (dot(ld, c->x + m * ld, c->z0) + sum(CHUNK, c->scores + m * CHUNK) + (real)h->call->eps);
}

void prepare_chunk(const ValueHead *h, size_t t0, bool shared, Chunk *c)
{
    c->n = fwm_min(CHUNK, h->T - t0);
    if (!shared)
        load_shared(h, t0, c);
    load_head(h, t0, c);
    if (c->shape.gate == FWM_CHANNEL_GATE)
        prepare_channels(c);
    else if (c->shape.gate == FWM_SCALAR_GATE)
        prepare_scalar(c);
    else
        scores_of_blocks(c);
    if (c->shape.normalize && c->shape.reads)
        denominators(h, c);
}

void prepare_chunk_backward(Chunk *c)
{
    const size_t M = c->shape.readers * CHUNK;
    transpose(M, c->shape.ld, c->x0, c->shape.ld, c->x0_t, M);
}
