/* What of a chunk needs no state: see chunk.h. */
#include "kernels/rules/family/chunk.h"

#include <string.h>

#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/base/vmath.h"
#include "kernels/rules/tokens.h"

ChunkShape chunk_shape(const FwmRuleCall *m, bool reads)
{
    const bool erases = erases_of(m);
    return (ChunkShape){
        .gate = m->gate,
        .erases = erases,
        .reads = reads,
        .normalize = m->normalize,
        .K = m->K,
        .ld = fwm_padded(m->K),
        .readers = (size_t)erases + (reads ? queries_per_state(m) : 0),
    };
}

Chunk take_chunk(const ChunkShape *s, Arena *arena)
{
    const size_t M = s->readers * C, ld = s->ld;
    Chunk c = {.shape = *s, .k = take(arena, C * ld), .x = take(arena, M * ld)};
    const bool gated = s->gate != FWM_NO_GATE;
    c.k1 = gated ? take(arena, C * ld) : c.k;
    c.x0 = gated ? take(arena, M * ld) : c.x;
    c.k1_t = take(arena, C * ld);
    c.k_t = s->gate == FWM_SCALAR_GATE ? take(arena, C * ld) : c.k1_t;
    c.x0_t = take(arena, M * ld);
    c.g = take(arena, C);
    c.from_start = take(arena, C);
    c.decays = take(arena, C * C);
    c.a = take(arena, s->gate == FWM_CHANNEL_GATE ? C * ld : 0);
    c.decay = take(arena, ld);
    if (gated)
        c.in_two = (Decay){take(arena, ld), take_bytes(arena, ld * sizeof(lane_number))};
    c.scores = take(arena, M * C);
    c.qk = take(arena, M * C);
    c.z0 = take(arena, ld);
    c.reciprocal = take(arena, M);
    return c;
}

ChunkGradients take_gradients(const ChunkShape *s, Arena *arena)
{
    const size_t M = s->readers * C;
    return (ChunkGradients){
        .dx0 = take(arena, s->ld * M),
        .dk1 = take(arena, s->ld * C),
        .dscores = take(arena, M * C),
        .ddecay = take(arena, s->ld),
        .dbeta = take(arena, C),
    };
}

static void multiply_row(size_t ld, const real *x, const real *y, real *out)
{
    for (size_t i = 0; i < ld; i += FWM_LANES)
        vec_store(out + i, vec_load(x + i) * vec_load(y + i));
}

static void clear_rows(size_t from, size_t ld, real *block)
{
    memset(block + from * ld, 0, (C - from) * ld * sizeof(real));
}

/* What value heads share that share a key and a query: keys, queries, and, where decays are numbers, their products.
 * What lies behind the last token reads and writes nothing. */
static void load_shared(const Head *h, size_t t0, Chunk *c)
{
    const ChunkShape *s = &c->shape;
    const size_t ld = s->ld, block = C * ld, queries = s->readers - s->erases;
    real *q = c->x + s->erases * block;
    load_keys(h, t0, c->n, ld, c->k);
    clear_rows(c->n, ld, c->k);
    if (s->reads)
        load_queries(h, t0, c->n, ld, q, ld, block);
    for (size_t r = 0; r < queries; r++)
        clear_rows(c->n, ld, q + r * block);
    if (s->gate == FWM_CHANNEL_GATE)
        return;
    transpose(C, ld, c->k, ld, c->k_t, C);
    gemm(queries * C, C, s->K, rows_of(q, ld), c->k_t, C, 0, NULL, c->qk, C);
}

/* Erase keys, and gates, which are 0 behind the last token; those of channels in place of a. */
static void load_head(const Head *h, size_t t0, Chunk *c)
{
    const ChunkShape *s = &c->shape;
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

/* Scores as products of whole blocks, X K^T, times the decays; what lies in the future is left out, not multiplied by
 * 0: a NaN there must not come back. */
static void scores_of_blocks(Chunk *c)
{
    const size_t M = c->shape.readers * C, first = c->shape.erases * C;
    gemm(first, C, c->shape.K, rows_of(c->x, c->shape.ld), c->k_t, C, 0, NULL, c->scores, C);
    for (size_t m = 0; m < M; m++) {
        const size_t t = m % C, seen = t + (m >= first);
        const real *from = m < first ? c->scores + m * C : c->qk + (m - first) * C;
        real *row = c->scores + m * C;
        for (size_t s = 0; s < C; s++)
            row[s] = s >= seen ? 0 : c->shape.gate == FWM_SCALAR_GATE ? from[s] * c->decays[t * C + s] : from[s];
    }
}

/* from_start, decays and the chunk's decay. What lies in the future is 0: it meets the zeros of dscores. */
static void decays_of_scalars(Chunk *c)
{
    double a[C], product = 1, row[C] = {0}; /* row: a_{s+1} .. a_t */
    for (size_t t = 0; t < C; t++)
        a[t] = exp_in_double(c->g[t]);
    for (size_t t = 0; t < C; t++) {
        for (size_t s = 0; s < C; s++)
            row[s] = s == t ? 1 : row[s] * a[t];
        for (size_t s = 0; s < C; s++)
            c->decays[t * C + s] = s > t ? 0 : (real)row[s];
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
    for (size_t s = 0; s < C; s++)
        scale(ld, c->decays[(C - 1) * C + s], c->k + s * ld, c->k1 + s * ld);
    for (size_t m = 0; m < c->shape.readers * C; m++)
        scale(ld, c->from_start[m % C], c->x + m * ld, c->x0 + m * ld);
    scores_of_blocks(c);
    for (size_t i = 0; i < ld; i++)
        multiply_row(C, c->decays + (C - 1) * C, c->k_t + i * C, c->k1_t + i * C);
}

/* a, and the two parts of the chunk's decay. The rows of decay and rest hold the sums of gates, and what a product has
 * lost, first. */
static void decays_of_channels(Chunk *c)
{
    const size_t ld = c->shape.ld;
    real *restrict sums = c->decay, *restrict rest = (real *)c->in_two.rest;
    lane_number *restrict one_more = (lane_number *)c->in_two.one_more;
    memset(sums, 0, ld * sizeof(real));
    memset(rest, 0, ld * sizeof(real));
    for (size_t t = 0; t < C; t++) {
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

/* key *= a, and the products of two readers with it. */
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

/* A channel gate stands inside the products, so each key is carried from token to token. */
static void prepare_channels(Chunk *c)
{
    const size_t ld = c->shape.ld, readers = c->shape.readers, n = c->n;
    decays_of_channels(c);
    memset(c->scores, 0, readers * C * C * sizeof(real));
    memcpy(c->k1, c->k, C * ld * sizeof(real));
    for (size_t s = 0; s < n; s++) {
        real *key = c->k1 + s * ld;
        for (size_t r = c->shape.erases; r < readers; r++)
            c->scores[(r * C + s) * C + s] = dot(ld, c->x + (r * C + s) * ld, key);
        for (size_t t = s + 1; t < n; t++) {
            real *scores = c->scores + t * C + s, *x = c->x + t * ld;
            if (readers == 2) {
                decay_and_read(ld, c->a + t * ld, key, x, x + C * ld, scores, scores + C * C);
                continue;
            }
            multiply_row(ld, c->a + t * ld, key, key);
            for (size_t r = 0; r < readers; r++)
                scores[r * C * C] = dot(ld, x + r * C * ld, key);
        }
    }
    memcpy(c->decay, c->a, ld * sizeof(real));
    for (size_t t = 0; t < C; t++) {
        if (t > 0)
            multiply_row(ld, c->a + t * ld, c->decay, c->decay);
        for (size_t r = 0; r < readers; r++)
            multiply_row(ld, c->decay, c->x + (r * C + t) * ld, c->x0 + (r * C + t) * ld);
    }
    transpose(C, ld, c->k1, ld, c->k1_t, C);
}

/* What the queries read is divided by x_t . z_t + eps, z_t = z0 + k_0 + .. + k_t: the sum of the scores is x_t . (z_t -
 * z0). */
static void denominators(const Head *h, Chunk *c)
{
    const size_t ld = c->shape.ld;
    for (size_t m = c->shape.erases * C; m < c->shape.readers * C; m++)
        c->reciprocal[m] = 1 / (dot(ld, c->x + m * ld, c->z0) + sum(C, c->scores + m * C) + (real)h->m->eps);
}

void prepare_chunk(const Head *h, size_t t0, bool shared, Chunk *c)
{
    c->n = fwm_min(C, h->T - t0);
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
    const size_t M = c->shape.readers * C;
    transpose(M, c->shape.ld, c->x0, c->shape.ld, c->x0_t, M);
}
