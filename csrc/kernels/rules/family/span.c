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
    span.e0 = channels ? take(arena, SPAN * ld) : span.k;
    span.q0 = channels ? take(arena, queries) : span.q;
    span.k1 = channels ? take(arena, SPAN * ld) : span.k;
    span.erases = take(arena, SPAN);
    span.reads = take(arena, SPAN);
    span.writes = take(arena, SPAN);
    span.raw.k = take_bytes(arena, s->rounds ? SPAN * ld * sizeof(uint16_t) : 0);
    span.raw.q = take_bytes(arena, s->rounds ? queries * sizeof(uint16_t) : 0);
    span.raw.k_factors = take(arena, s->rounds ? SPAN : 0);
    span.raw.erases = take(arena, s->rounds ? SPAN : 0);
    span.raw.q_factors = take(arena, s->rounds ? R * SPAN : 0);
    span.raw.reads = take(arena, s->rounds ? R * SPAN : 0);
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

static size_t queries_of(const Span *span)
{
    return span->shape.readers - 1;
}

/* The pairs of a quad: x_t . k_s of erase keys and of queries (NULL: not wanted, 0), with the products of a between s
 * and t (NULL: 1). */
ALWAYS_INLINE void pairs_of_quad(bool erases, bool reads, bool decays, size_t ld, const real *k, const real *e,
                                 const real *q, const real *a, real *pairs)
{
    vec sums[PAIRS];
#pragma GCC unroll 16
    for (size_t i = 0; i < PAIRS; i++)
        sums[i] = (vec){0};
    for (size_t i = 0; i < ld; i += FWM_LANES) {
        vec key[QUAD];
#pragma GCC unroll 4
        for (size_t t = 0; t < QUAD; t++) {
            key[t] = vec_load(k + t * ld + i);
#pragma GCC unroll 4
            for (size_t s = 0; s < t; s++) {
                if (decays)
                    key[s] *= vec_load(a + t * ld + i);
                if (erases)
                    sums[ERASE_PAIR(t, s)] += vec_load(e + t * ld + i) * key[s];
            }
#pragma GCC unroll 4
            for (size_t s = 0; s <= t; s++)
                if (reads)
                    sums[QUERY_PAIR(t, s)] += vec_load(q + t * ld + i) * key[s];
        }
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < PAIRS; i += FWM_LANES)
        vec_store(pairs + i, vec_sums(sums + i));
}

/* All pairs of quad i: of the erase keys in rows e, and of the queries, with the decays a (NULL: none). The erase keys'
 * are those of the first query, or stand alone. */
ALWAYS_INLINE void pairs_of_rows(const Span *span, size_t i, bool decays, const real *e, const real *a, real *pairs)
{
    const size_t ld = span->shape.ld, R = queries_of(span), at = i * QUAD * ld;
    const real *k = span->k + at, *ai = decays ? a + at : NULL;
    real *to = pairs + i * (R ? R : 1) * PAIRS;
    if (R)
        pairs_of_quad(true, true, decays, ld, k, e + at, span->q + at, ai, to);
    else
        pairs_of_quad(true, false, decays, ld, k, e + at, NULL, ai, to);
    for (size_t query = 1; query < R; query++)
        pairs_of_quad(false, true, decays, ld, k, NULL, span->q + query * SPAN * ld + at, ai, to + query * PAIRS);
}

static void clear_rows(const Span *span, real *rows)
{
    memset(rows + span->n * span->shape.ld, 0, (span->quads * QUAD - span->n) * span->shape.ld * sizeof(real));
}

/* The same rows as load_keys and load_queries, and those of raw. Rows after the last token are zeros. */
static void load_raw_rows(const ValueHead *h, size_t t0, Span *span)
{
    const size_t ld = span->shape.ld, all = span->quads * QUAD, rest = all - span->n;
    load_raw_keys(h, t0, span->n, ld, span->k, span->raw.k, span->raw.k_factors);
    memset(span->raw.k + span->n * ld, 0, rest * ld * sizeof(uint16_t));
    memset(span->raw.k_factors + span->n, 0, rest * sizeof(real));
    for (size_t query = 0; query < queries_of(span); query++) {
        const size_t first = query * SPAN, end = first + span->n;
        load_raw_queries(h, query, t0, span->n, ld, span->q + first * ld, span->raw.q + first * ld,
                         span->raw.q_factors + first);
        memset(span->raw.q + end * ld, 0, rest * ld * sizeof(uint16_t));
        memset(span->raw.q_factors + end, 0, rest * sizeof(real));
    }
}

/* What the value heads of one key and query head share: keys, queries and, unless the gate is one of channels, their
 * products. */
static void load_shared(const ValueHead *h, size_t t0, Span *span)
{
    const size_t ld = span->shape.ld, R = queries_of(span);
    if (span->shape.rounds)
        load_raw_rows(h, t0, span);
    else
        load_keys(h, t0, span->n, ld, span->k, NULL);
    clear_rows(span, span->k);
    if (R && !span->shape.rounds)
        load_queries(h, t0, span->n, ld, span->q, ld, SPAN * ld, NULL);
    for (size_t query = 0; query < R; query++)
        clear_rows(span, span->q + query * SPAN * ld);
    for (size_t i = 0; i < span->quads && span->shape.gate != FWM_CHANNEL_GATE; i++)
        pairs_of_rows(span, i, false, span->k, NULL, span->dots);
}

/* strength and a, or the erase keys in e0; 0 and 1 after the last token. Gates of channels are put where a will be. */
static void load_head(const ValueHead *h, size_t t0, Span *span)
{
    const size_t all = span->quads * QUAD;
    if (span->shape.gate != FWM_CHANNEL_GATE) {
        load_strengths(h, t0, span->n, span->strength);
        for (size_t t = span->n; t < all; t++)
            span->strength[t] = 0;
    } else {
        load_erase_keys(h, t0, span->n, span->shape.ld, span->k, span->e0);
        clear_rows(span, span->e0);
    }
    if (span->shape.gate == FWM_NO_GATE)
        return;
    load_gates(h, t0, span->n, span->shape.ld, span->a);
    if (span->shape.gate == FWM_CHANNEL_GATE) {
        clear_rows(span, span->a);
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

static inline vec times_where(vec x, const lane_number *mask, real factor)
{
    const vec one = (vec){0} + 1;
    return x * vec_select((vec_mask)vec_load((const real *)mask), (vec){0} + factor, one);
}

/* A and P from the products of keys and queries, the strengths, and the quad's a (NULL: 1). */
static void scale_pairs(const Span *span, size_t i, const double *a)
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
            vec_store(span->pairs + at + query * PAIRS + j, factors * vec_load(span->dots + at + query * PAIRS + j));
    }
}

static void prepare_ungated(Span *span)
{
    memset(span->folds, 0, sizeof span->folds);
    for (size_t i = 0; i < span->quads; i++)
        scale_pairs(span, i, NULL);
    for (size_t t = 0; t < span->quads * QUAD; t++) {
        span->erases[t] = span->strength[t];
        span->reads[t] = span->writes[t] = 1;
    }
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
        scale_pairs(span, i, a);
        for (size_t t = 0; t < QUAD; t++) {
            span->writes[i * QUAD + t] = (real)(after[t] * in_keys);
            span->reads[i * QUAD + t] = (real)(c * upto[t]);
            span->erases[i * QUAD + t] = (real)(c * upto[t] * span->strength[i * QUAD + t]);
        }
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

/* The rows of quad i, and c after it. */
static void scale_channels(const Span *span, size_t i)
{
    const bool folds = span->folds[i];
    const size_t ld = span->shape.ld, R = queries_of(span), at = i * QUAD * ld;
    const vec one = (vec){0} + 1;
    for (size_t j = 0; j < ld; j += FWM_LANES) {
        vec read = vec_load(span->c + j), write = one, upto[QUAD];
        for (size_t t = 0; t < QUAD; t++)
            upto[t] = read *= vec_load(span->a + at + t * ld + j);
        for (size_t t = 0; t < QUAD; t++)
            vec_store(span->e0 + at + t * ld + j, upto[t] * vec_load(span->e0 + at + t * ld + j));
        for (size_t query = 0; query < R; query++)
            for (size_t t = 0; t < QUAD; t++) {
                const size_t row = query * SPAN * ld + at + t * ld + j;
                vec_store(span->q0 + row, upto[t] * vec_load(span->q + row));
            }
        if (!folds)
            write /= upto[QUAD - 1];
        for (size_t s = QUAD; s-- > 0;) {
            vec_store(span->k1 + at + s * ld + j, write * vec_load(span->k + at + s * ld + j));
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
static void prepare_channels(Span *span, size_t fold_every)
{
    const size_t ld = span->shape.ld;
    memset(span->sums, 0, ld * sizeof(real));
    memset(span->lost, 0, ld * sizeof(real));
    for (size_t j = 0; j < ld; j++)
        span->c[j] = 1;
    for (size_t i = 0; i < span->quads; i++) {
        decays_of_channels(span, i);
        pairs_of_rows(span, i, true, span->e0, span->a, span->pairs);
        span->folds[i] = folds_anyway(span, i, fold_every) || !may_go_on(span, span->a + i * QUAD * ld);
        scale_channels(span, i);
        if (span->folds[i] || span->kept[i])
            set_fold_of_channels(span, i);
    }
}

/* What raw rows read is to be multiplied by the factors of the rows, too. */
static void scale_raw_readers(const Span *span)
{
    for (size_t t = 0; t < span->quads * QUAD; t++)
        span->raw.erases[t] = span->erases[t] * span->raw.k_factors[t];
    for (size_t query = 0; query < queries_of(span); query++)
        for (size_t t = 0; t < span->quads * QUAD; t++)
            span->raw.reads[query * SPAN + t] = span->reads[t] * span->raw.q_factors[query * SPAN + t];
}

/* What the queries read is divided by q_t . z_t + eps, z_t the sum of keys up to t. */
static void sum_keys(const ValueHead *h, size_t t0, Span *span, real *z)
{
    const size_t ld = span->shape.ld, R = queries_of(span);
    for (size_t t = 0; t < span->n; t++) {
        add(ld, span->k + t * ld, z);
        for (size_t query = 0; query < R; query++)
            span->reciprocal[query * SPAN + t] =
                1 / (dot(ld, span->q + (query * SPAN + t) * ld, z) + (real)h->call->eps);
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
        load_shared(h, t0, span);
    load_head(h, t0, span);
    if (span->shape.gate == FWM_CHANNEL_GATE)
        prepare_channels(span, fold_every);
    else if (span->shape.gate == FWM_SCALAR_GATE)
        prepare_scalar(span, fold_every);
    else
        prepare_ungated(span);
    if (span->shape.rounds)
        scale_raw_readers(span);
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
