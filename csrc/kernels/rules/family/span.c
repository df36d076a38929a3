/* A span of quads, what needs no state: see span.h. Derived in docs/mathematics/rules.md. */
#include "kernels/rules/family/span.h"

#include <string.h>

#include "kernels/base/vmath.h"

/* Of c: the state is folded before c leaves these bounds. */
#define SMALLEST_FACTOR 0x1p-20
#define LARGEST_FACTOR 0x1p20
/* Of a quad's product of a: between these bounds it is weak, and the state is folded after every quad. */
#define WEAK_FROM 0.9
#define WEAK_TO 1.1

Span take_span(const FamilyShape *s, Arena *arena)
{
    const size_t ld = s->ld, R = s->readers - 1, queries = R * SPAN * ld, pairs = QUADS * (R ? R : 1) * PAIRS;
    const bool gated = s->gate != FWM_NO_GATE, channels = s->gate == FWM_CHANNEL_GATE;
    Span span = {.shape = *s, .k = take(arena, SPAN * ld), .q = take(arena, queries)};
    span.k_factors = take(arena, SPAN);
    span.q_factors = take(arena, R * SPAN);
    span.squares = take(arena, (1 + R) * SPAN * FWM_LANES);
    span.k_16 = take_bytes(arena, s->rounds ? SPAN * ld * sizeof(uint16_t) : 0);
    span.q_16 = take_bytes(arena, s->rounds ? queries * sizeof(uint16_t) : 0);
    span.e0 = channels ? take(arena, SPAN * ld) : span.k;
    span.q0 = channels ? take(arena, queries) : span.q;
    span.k1 = channels ? take(arena, SPAN * ld) : span.k;
    span.erases = take(arena, SPAN);
    span.reads = take(arena, R * SPAN);
    span.writes = take(arena, SPAN);
    span.dots = take(arena, channels ? 0 : pairs);
    span.pairs = take(arena, pairs);
    span.a = take(arena, gated ? SPAN * (channels ? ld : 1) : 0);
    span.scalars = take_bytes(arena, SPAN * sizeof(double));
    span.strength = take(arena, SPAN);
    span.c = take(arena, ld);
    span.sums = take(arena, ld);
    span.lost = take(arena, ld);
    for (size_t i = 0; i < QUADS; i++)
        span.c_of_fold[i] = gated ? (Decay){take(arena, ld), take_bytes(arena, ld * sizeof(lane_number))} : (Decay){0};
    span.reciprocal = take(arena, R * SPAN);
    return span;
}

/* strength and a, and in e0 the erase keys that have a row of their own; 0 and 1 after the last token. Gates of
 * channels are put where a will be. */
static void load_head(const ValueHead *h, size_t t0, Span *span)
{
    const size_t all = span->quads * QUAD, ld = span->shape.ld;
    load_strengths(h, t0, span->n, span->strength);
    for (size_t t = span->n; t < all; t++)
        span->strength[t] = 0;
    if (h->b.data) {
        load_erase_keys(h, t0, span->n, ld, span->k, span->e0);
        memset(span->e0 + span->n * ld, 0, (all - span->n) * ld * sizeof(real));
    }
    if (span->shape.gate == FWM_NO_GATE)
        return;
    load_gates(h, t0, span->n, ld, span->a);
    if (span->shape.gate == FWM_CHANNEL_GATE) {
        memset(span->a + span->n * ld, 0, (all - span->n) * ld * sizeof(real));
        return;
    }
    for (size_t t = span->n; t < all; t++)
        span->a[t] = 0;
#pragma omp simd
    for (size_t t = 0; t < all; t++)
        span->scalars[t] = exp_in_double(span->a[t]);
}

/* Whether c, which a quad multiplies by a, may go on to the next. NaN may not. */
#define FWM_MAY_GO_ON(c, a)                                                                                            \
    ((c) >= (real)SMALLEST_FACTOR && (c) <= (real)LARGEST_FACTOR && !((a) > (real)WEAK_FROM && (a) < (real)WEAK_TO))

/* Whether the state is folded after quad i whatever the gates are. */
static bool folds_anyway(const Span *span, size_t i, size_t fold_every)
{
    return i + 1 == span->quads || (i + 1) * QUAD % fold_every == 0;
}

/* Of the pairs of a quad in their order, all bits set where reader t has key s before token j, s < j <= t: j = 1, 2, 3;
 * and where the reader is erase key t = 1, 2, 3. */
static const lane_number crosses[QUAD - 1][PAIRS] = {{-1, -1, 0, -1, 0, 0, 0, -1, 0, -1, 0, 0, -1, 0, 0, 0},
                                                     {0, -1, -1, -1, -1, 0, 0, 0, 0, -1, -1, 0, -1, -1, 0, 0},
                                                     {0, 0, 0, -1, -1, -1, 0, 0, 0, 0, 0, 0, -1, -1, -1, 0}};
static const lane_number erase_key[QUAD - 1][PAIRS] = {{-1}, {0, -1, -1}, {0, 0, 0, -1, -1, -1}};

/* A and P from the products of keys and queries, the strengths, and the quad's a (NULL: 1). */
static void scale_pairs(const Span *span, size_t i, const double *a, const real *products)
{
    const size_t R = queries_of(span), at = i * (R ? R : 1) * PAIRS;
    for (size_t j = 0; j < PAIRS; j += FWM_LANES) {
        vec factors = (vec){0} + 1;
        for (size_t t = 1; t < QUAD; t++) {
            if (a)
                factors = times_where(factors, crosses[t - 1] + j, (real)a[t]);
            factors = times_where(factors, erase_key[t - 1] + j, span->strength[i * QUAD + t]);
        }
        for (size_t query = 0; query < (R ? R : 1); query++)
            vec_store(span->pairs + at + query * PAIRS + j, factors * vec_load(products + at + query * PAIRS + j));
    }
}

/* What the rows of token t of the span are multiplied by, as they read S~ and are written to it. */
static void set_factors(const Span *span, size_t t, real read, real write)
{
    span->writes[t] = write * span->k_factors[t];
    span->erases[t] = read * span->strength[t] * span->k_factors[t];
    for (size_t query = 0; query < queries_of(span); query++)
        span->reads[query * SPAN + t] = read * span->q_factors[query * SPAN + t];
}

static void prepare_ungated(Span *span)
{
    memset(span->folds, 0, sizeof span->folds);
    for (size_t i = 0; i < span->quads; i++)
        scale_pairs(span, i, NULL, span->dots);
    for (size_t t = 0; t < span->quads * QUAD; t++)
        set_factors(span, t, 1, 1);
}

/* Where a fold's c is near 1, it is kept as 1 and the rest. */
static void set_fold(const Span *span, size_t i, double c)
{
    const bool near_one = c > 0.7 && c < 1.4;
    real *rest = (real *)span->c_of_fold[i].rest;
    lane_number *one_more = (lane_number *)span->c_of_fold[i].one_more;
    for (size_t j = 0; j < span->shape.ld; j++) {
        rest[j] = (real)(c - near_one);
        one_more[j] = -(lane_number)near_one;
    }
}

static void prepare_scalar(Span *span, size_t fold_every)
{
    double c = 1;
    for (size_t i = 0; i < span->quads; i++) {
        const double *a = span->scalars + i * QUAD;
        /* a_0 .. a_t, a_{t+1} .. a_3 */
        const double upto[QUAD] = {a[0], a[0] * a[1], a[0] * a[1] * a[2], a[0] * a[1] * a[2] * a[3]};
        const double after[QUAD] = {a[1] * (a[2] * a[3]), a[2] * a[3], a[3], 1};
        const double next = c * upto[QUAD - 1];
        span->folds[i] = folds_anyway(span, i, fold_every) || !FWM_MAY_GO_ON(next, upto[QUAD - 1]);
        const double in_keys = span->folds[i] ? 1 : 1 / next;
        scale_pairs(span, i, a, span->dots);
        for (size_t t = 0; t < QUAD; t++)
            set_factors(span, i * QUAD + t, (real)(c * upto[t]), (real)(after[t] * in_keys));
        if (span->folds[i] || span->kept[i])
            set_fold(span, i, next);
        c = span->folds[i] ? 1 : next;
    }
}

/* a from the gates, and the sums of the gates of a quad. */
static void decays_of_channels(const Span *span, size_t i)
{
    const size_t ld = span->shape.ld;
    real *restrict sums = span->sums, *restrict lost = span->lost;
    for (size_t t = i * QUAD; t < (i + 1) * QUAD; t++) {
        real *restrict a = span->a + t * ld;
#pragma omp simd
        for (size_t j = 0; j < ld; j++) {
            sums[j] += a[j];
            a[j] = exp_of_product(a[j], &lost[j]);
        }
    }
}

/* Of all channels, with the quad's a. */
static bool may_go_on(const Span *span, const real *a)
{
    const size_t ld = span->shape.ld;
    int all = 1;
#pragma omp simd reduction(& : all)
    for (size_t j = 0; j < span->shape.K; j++) {
        const real product = a[j] * a[ld + j] * (a[2 * ld + j] * a[3 * ld + j]), c = span->c[j] * product;
        all &= FWM_MAY_GO_ON(c, product);
    }
    return all;
}

/* The rows of quad i, from its erase keys e too, and c after it. Rows are multiplied by their factors first. */
static void scale_channels(const Span *span, size_t i, const real *e)
{
    const bool folds = span->folds[i];
    const size_t ld = span->shape.ld, R = queries_of(span), at = i * QUAD * ld;
    const vec one = (vec){0} + 1;
    real in_k[QUAD], in_e[QUAD];
    for (size_t t = 0; t < QUAD; t++) {
        in_k[t] = span->k_factors[i * QUAD + t];
        in_e[t] = span->strength[i * QUAD + t] * in_k[t];
    }
    for (size_t j = 0; j < ld; j += FWM_LANES) {
        vec read = vec_load(span->c + j), write = one, upto[QUAD];
        for (size_t t = 0; t < QUAD; t++)
            upto[t] = read *= vec_load(span->a + at + t * ld + j);
        for (size_t t = 0; t < QUAD; t++)
            vec_store(span->e0 + at + t * ld + j, upto[t] * (in_e[t] * vec_load(e + t * ld + j)));
        for (size_t query = 0; query < R; query++)
            for (size_t t = 0; t < QUAD; t++) {
                const real in_q = span->q_factors[query * SPAN + i * QUAD + t];
                const size_t row = query * SPAN * ld + at + t * ld + j;
                vec_store(span->q0 + row, upto[t] * (in_q * vec_load(span->q + row)));
            }
        if (!folds)
            write /= upto[QUAD - 1];
        for (size_t s = QUAD; s-- > 0;) {
            vec_store(span->k1 + at + s * ld + j, write * (in_k[s] * vec_load(span->k + at + s * ld + j)));
            write *= vec_load(span->a + at + s * ld + j);
        }
        vec_store(span->c + j, folds ? one : upto[QUAD - 1]);
    }
}

static void set_fold_of_channels(const Span *span, size_t i)
{
    const bool folds = span->folds[i];
    const size_t ld = span->shape.ld;
    real *restrict sums = span->sums, *restrict rest = (real *)span->c_of_fold[i].rest;
    lane_number *restrict one_more = (lane_number *)span->c_of_fold[i].one_more;
#pragma omp simd
    for (size_t j = 0; j < ld; j++) {
        one_more[j] = exp_in_two(sums[j], &rest[j]);
        sums[j] = folds ? 0 : sums[j];
    }
}

/* A channel gate stands inside the products, so keys are decayed from token to token. */
static void prepare_channels(const ValueHead *h, Span *span, size_t fold_every)
{
    const size_t ld = span->shape.ld;
    memset(span->sums, 0, ld * sizeof(real));
    memset(span->lost, 0, ld * sizeof(real));
    for (size_t j = 0; j < ld; j++)
        span->c[j] = 1;
    for (size_t i = 0; i < span->quads; i++) {
        const real *e = (h->b.data ? span->e0 : span->k) + i * QUAD * ld;
        decays_of_channels(span, i);
        decayed_pairs(span, i, e);
        scale_pairs(span, i, NULL, span->pairs);
        span->folds[i] = folds_anyway(span, i, fold_every) || !may_go_on(span, span->a + i * QUAD * ld);
        scale_channels(span, i, e);
        if (span->folds[i] || span->kept[i])
            set_fold_of_channels(span, i);
    }
}

/* What the queries read is divided by q_t . z_t + eps, z_t the sum of keys up to t. */
static void sum_keys(const ValueHead *h, size_t t0, Span *span, real *z)
{
    const size_t ld = span->shape.ld, R = queries_of(span);
    for (size_t t = 0; t < span->n; t++) {
        add_scaled(ld, span->k_factors[t], span->k + t * ld, z);
        for (size_t query = 0; query < R; query++) {
            const size_t at = query * SPAN + t;
            const real sum = span->q_factors[at] * dot(ld, span->q + at * ld, z);
            span->reciprocal[at] = 1 / (sum + (real)h->call->eps);
        }
        real *kept = kept_sum(h, t0 + t + 1);
        if (kept)
            copy(h->K, z, kept);
    }
}

void prepare_span(const ValueHead *h, size_t t0, size_t fold_every, bool shared, Span *span, real *sum)
{
    span->n = fwm_min(SPAN, h->T - t0);
    span->quads = fwm_tiles(span->n, QUAD);
    for (size_t i = 0; i < span->quads; i++)
        span->kept[i] = kept_state(h, t0 + fwm_min(span->n, (i + 1) * QUAD));
    if (!shared)
        load_span_rows(h, t0, span);
    load_head(h, t0, span);
    if (span->shape.gate == FWM_CHANNEL_GATE)
        prepare_channels(h, span, fold_every);
    else if (span->shape.gate == FWM_SCALAR_GATE)
        prepare_scalar(span, fold_every);
    else
        prepare_ungated(span);
    if (span->shape.normalize && span->shape.reads)
        sum_keys(h, t0, span, sum);
}

void load_span_values(const ValueHead *h, size_t t0, size_t n, size_t j0, size_t columns, size_t ld, real *u)
{
    const size_t padding = fwm_padded(columns) - columns;
    load_values(h, t0, n, j0, columns, ld, u + j0);
    for (size_t t = 0; t < n && padding; t++)
        memset(u + t * ld + j0 + columns, 0, padding * sizeof(real));
    for (size_t t = n; t < fwm_tiles(n, CHUNK) * CHUNK; t++)
        memset(u + t * ld + j0, 0, (columns + padding) * sizeof(real));
}
