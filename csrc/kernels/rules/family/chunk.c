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

static void clear_rows(size_t from, size_t ld, real *block)
{
    memset(block + from * ld, 0, (CHUNK - from) * ld * sizeof(real));
}

void fetch_chunk(const ValueHead *h, size_t t0, Chunk *c)
{
    const FamilyShape *s = &c->shape;
    const size_t ld = s->ld, block = CHUNK * ld, queries = s->readers - s->erases;
    real *q = c->x + s->erases * block;
    c->n = fwm_min(CHUNK, h->T - t0);
    read_keys(h, t0, c->n, ld, c->k);
    if (s->reads)
        read_queries(h, t0, c->n, ld, q, ld, block);
    /* rows after the last token are zeros, which read and write nothing */
    clear_rows(c->n, ld, c->k);
    for (size_t r = 0; r < queries; r++)
        clear_rows(c->n, ld, q + r * block);
}

/* What the value heads of one key and query head share: keys, queries and, unless the gate is one of channels, their
 * products. */
static void prepare_shared(const ValueHead *h, Chunk *c)
{
    const FamilyShape *s = &c->shape;
    const size_t ld = s->ld, queries = s->readers - s->erases;
    real *q = c->x + s->erases * CHUNK * ld;
    normalise_keys(h, c->n, ld, c->k, c->k_factors);
    if (s->reads)
        normalise_queries(h, c->n, ld, q, ld, CHUNK * ld, c->q_factors);
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
        const real *from = m < first ? c->scores + m * CHUNK : c->qk + (m - first) * CHUNK;
        for (size_t s = 0; s < CHUNK; s += FWM_LANES) {
            const vec x = where_seen(&c->shape, m, s, vec_load(from + s));
            const bool decayed = c->shape.gate == FWM_SCALAR_GATE;
            vec_store(c->scores + m * CHUNK + s, decayed ? x * vec_load(c->decays + m % CHUNK * CHUNK + s) : x);
        }
    }
}

/* from_start, decays and the chunk's decay. What lies in the future is 0: the backward multiplies it by the zeros of
 * dscores. */
static void decays_of_scalars(Chunk *c)
{
    double a[CHUNK], product = 1, row[CHUNK] = {0}; /* row: a_{s+1} .. a_t */
#pragma omp simd
    for (size_t t = 0; t < CHUNK; t++)
        a[t] = exp_in_double(c->g[t]);
    for (size_t t = 0; t < CHUNK; t++) {
        real *restrict decays = c->decays + t * CHUNK;
#pragma omp simd
        for (int s = 0; s < CHUNK; s++) {
            row[s] = s == (int)t ? 1 : row[s] * a[t];
            decays[s] = s > (int)t ? 0 : (real)row[s];
        }
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

/* Products of a reader with FWM_LANES keys, rows of ld numbers. */
static inline vec products_with_keys(size_t ld, const real *x, const real *keys)
{
    vec sums[FWM_LANES];
#pragma GCC unroll 16
    for (size_t s = 0; s < FWM_LANES; s++)
        sums[s] = (vec){0};
    for (size_t i = 0; i < ld; i += FWM_LANES) {
        const vec reader = vec_load(x + i);
#pragma GCC unroll 16
        for (size_t s = 0; s < FWM_LANES; s++)
            sums[s] += reader * vec_load(keys + s * ld + i);
    }
    return vec_sums(sums);
}

/* A channel gate stands inside the products, so each key is decayed from token to token. */
static void prepare_channels(Chunk *c)
{
    const size_t ld = c->shape.ld, readers = c->shape.readers, n = c->n;
    decays_of_channels(c);
    memset(c->scores, 0, readers * CHUNK * CHUNK * sizeof(real));
    memcpy(c->k1, c->k, CHUNK * ld * sizeof(real));
    for (size_t t = 0; t < n; t++) {
        for (size_t s = 0; s < t; s++)
            multiply_row(ld, c->a + t * ld, c->k1 + s * ld, c->k1 + s * ld);
        for (size_t m = t; m < readers * CHUNK; m += CHUNK)
            for (size_t s = 0; s <= t; s += FWM_LANES)
                vec_store(c->scores + m * CHUNK + s,
                          where_seen(&c->shape, m, s, products_with_keys(ld, c->x + m * ld, c->k1 + s * ld)));
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
    if (!shared)
        prepare_shared(h, c);
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
