/* The keys and queries of a span as they are stored, what is to normalise them, and their products: the part of a span
 * that value heads of a key head share, and with a channel gate the products alone.
 *
 * Rows are neither normalised nor scaled. What a row reads or writes is multiplied by a number anyhow, so that its
 * factor can stand in that number, and in its products; then a row is passed over once, for the products and for the
 * sum of its squares. Only where a factor is far from 1 is the row itself multiplied, and its factor becomes 1: else
 * products of very large or small rows would leave the range of numbers. Only such a row in bfloat16 is rounded by it,
 * and other rows keep their bits.
 *
 * See span.h. Derived in docs/mathematics/rules.md. */
#include "kernels/rules/family/span.h"

#include <string.h>

#include "kernels/base/vmath.h"
#include "kernels/rules/qk_norm.h"

/* Between them a row's factor stays out of the row. The largest is below that of a row of zeros under the l2 norm. */
#define SMALLEST_APART 0x1p-40
#define LARGEST_APART 0x1p9

/* Keys or queries of a quad, `stride` numbers apart. */
typedef struct {
    const real *rows;
    size_t stride;
    real *copies;  /* ld numbers apart; may be the rows themselves */
    real *squares; /* a vector for each: the sum of its lanes is that of the row's squares */
} QuadRows;

/* Products of a quad: x_t . k_s of erase keys (e, NULL: the keys) and of queries, 0 where not wanted, with the products
 * of a between s and t. Without these, rows are copied. */
ALWAYS_INLINE void pairs_of_quad(bool erases, bool reads, bool decays, bool squares, size_t ld, QuadRows k, QuadRows q,
                                 QuadRows e, const real *a, real *pairs)
{
    vec sums[PAIRS], k_squares[QUAD], q_squares[QUAD];
#pragma GCC unroll 16
    for (size_t i = 0; i < PAIRS; i++)
        sums[i] = (vec){0};
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD; t++)
        k_squares[t] = q_squares[t] = (vec){0};
    for (size_t i = 0; i < ld; i += FWM_LANES) {
        vec key[QUAD];
#pragma GCC unroll 4
        for (size_t t = 0; t < QUAD; t++) {
            key[t] = vec_in_register(vec_load(k.rows + t * k.stride + i));
            const vec erase = e.rows ? vec_load(e.rows + t * e.stride + i) : key[t];
            if (erases && squares)
                k_squares[t] += key[t] * key[t];
            if (erases && !decays)
                vec_store(k.copies + t * ld + i, key[t]);
#pragma GCC unroll 4
            for (size_t s = 0; s < t; s++) {
                if (decays)
                    key[s] *= vec_load(a + t * ld + i);
                if (erases)
                    sums[ERASE_PAIR(t, s)] += erase * key[s];
            }
            if (!reads)
                continue;
            const vec query = vec_in_register(vec_load(q.rows + t * q.stride + i));
            if (squares)
                q_squares[t] += query * query;
            if (!decays)
                vec_store(q.copies + t * ld + i, query);
#pragma GCC unroll 4
            for (size_t s = 0; s <= t; s++)
                sums[QUERY_PAIR(t, s)] += query * key[s];
        }
    }
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD && squares; t++) {
        if (erases)
            vec_store(k.squares + t * FWM_LANES, k_squares[t]);
        if (reads)
            vec_store(q.squares + t * FWM_LANES, q_squares[t]);
    }
#pragma GCC unroll 16
    for (size_t i = 0; i < PAIRS; i += FWM_LANES)
        vec_store(pairs + i, vec_sums(sums + i));
}

/* Where the rows of a span are read for their products: in the call's arrays, or in span->k and span->q. */
typedef struct {
    Tokens keys, queries;
    size_t per_query; /* numbers from one query of a token to the next */
} RowSource;

static RowSource copies_of(const Span *span)
{
    const size_t ld = span->shape.ld;
    return (RowSource){{span->k, ld, FWM_REAL}, {span->q, ld, FWM_REAL}, SPAN * ld};
}

static QuadRows quad_keys(const Span *span, const RowSource *from, size_t i)
{
    const size_t t = i * QUAD;
    return (QuadRows){token(from->keys, t), from->keys.stride, span->k + t * span->shape.ld,
                      span->squares + t * FWM_LANES};
}

static QuadRows quad_queries(const Span *span, const RowSource *from, size_t query, size_t i)
{
    const size_t t = i * QUAD, at = query * SPAN + t;
    return (QuadRows){token(from->queries, t) + query * from->per_query, from->queries.stride,
                      span->q + at * span->shape.ld, span->squares + (SPAN + at) * FWM_LANES};
}

/* All pairs of quad i. The erase keys' are those of the first query, or stand alone. */
ALWAYS_INLINE void pairs_of_rows(const Span *span, const RowSource *from, size_t i, bool decays, bool squares,
                                 QuadRows e, real *pairs)
{
    const size_t ld = span->shape.ld, R = queries_of(span);
    const real *a = decays ? span->a + i * QUAD * ld : NULL;
    const QuadRows k = quad_keys(span, from, i), none = {0};
    real *to = pairs + i * (R ? R : 1) * PAIRS;
    if (R)
        pairs_of_quad(true, true, decays, squares, ld, k, quad_queries(span, from, 0, i), e, a, to);
    else
        pairs_of_quad(true, false, decays, squares, ld, k, none, e, a, to);
    for (size_t query = 1; query < R; query++)
        pairs_of_quad(false, true, decays, squares, ld, k, quad_queries(span, from, query, i), none, a,
                      to + query * PAIRS);
}

/* Where the pairs of a quad have key t, as a key or as an erase key, and where they have query t. */
static const lane_number has_key[QUAD][PAIRS] = {{-1, -1, 0, -1, 0, 0, -1, -1, 0, -1, 0, 0, -1, 0, 0, 0},
                                                 {-1, 0, -1, 0, -1, 0, 0, 0, -1, 0, -1, 0, 0, -1, 0, 0},
                                                 {0, -1, -1, 0, 0, -1, 0, 0, 0, 0, 0, -1, 0, 0, -1, 0},
                                                 {0, 0, 0, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1}};
static const lane_number has_query[QUAD][PAIRS] = {{0, 0, 0, 0, 0, 0, -1},
                                                   {0, 0, 0, 0, 0, 0, 0, -1, -1},
                                                   {0, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1},
                                                   {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1}};

/* The pairs of quad i times the factors of their rows. */
static void normalise_pairs(const Span *span, size_t i, real *pairs)
{
    const size_t R = queries_of(span), t0 = i * QUAD;
    for (size_t j = 0; j < PAIRS; j += FWM_LANES) {
        vec of_keys = (vec){0} + 1;
        for (size_t t = 0; t < QUAD; t++)
            of_keys = times_where(of_keys, has_key[t] + j, span->k_factors[t0 + t]);
        for (size_t query = 0; query < (R ? R : 1); query++) {
            real *to = pairs + (i * (R ? R : 1) + query) * PAIRS + j;
            vec factors = of_keys;
            for (size_t t = 0; t < QUAD && R; t++)
                factors = times_where(factors, has_query[t] + j, span->q_factors[query * SPAN + t0 + t]);
            vec_store(to, factors * vec_load(to));
        }
    }
}

void decayed_pairs(const Span *span, size_t i, const real *e)
{
    const RowSource from = copies_of(span);
    pairs_of_rows(span, &from, i, true, false, (QuadRows){e, span->shape.ld, NULL, NULL}, span->pairs);
    normalise_pairs(span, i, span->pairs);
}

/* Numbers i .. of all tokens where they lie, if they need no padding and are read only once; or in `copies`. */
static Tokens rows_from(const Span *span, Tokens x, size_t t0, size_t i, real *copies)
{
    const size_t ld = span->shape.ld, all = span->quads * QUAD;
    const bool once = span->shape.gate != FWM_CHANNEL_GATE;
    if (x.numbers == FWM_REAL && span->shape.K == ld && span->n == all && once)
        return tokens_from(x, t0, i);
    for (size_t t = 0; t < span->n; t++)
        load_numbers(x, t0 + t, i, span->shape.K, ld, copies + t * ld);
    memset(copies + span->n * ld, 0, (all - span->n) * ld * sizeof(real));
    return (Tokens){copies, ld, FWM_REAL};
}

/* Rows in bfloat16 as they are stored. */
static void take_halves(const Span *span, Tokens x, size_t t0, size_t i, uint16_t *halves)
{
    const size_t K = span->shape.K, ld = span->shape.ld;
    memset(halves, 0, span->quads * QUAD * ld * sizeof(uint16_t));
    for (size_t t = 0; t < span->n; t++)
        memcpy(halves + t * ld, tokens_from(x, t0 + t, i).data, K * sizeof(uint16_t));
}

/* Query 0 comes last: where one lies where it is stored, all do, and the others behind it. */
static RowSource take_rows(const ValueHead *h, size_t t0, const Span *span)
{
    const size_t block = SPAN * span->shape.ld;
    RowSource from = {.keys = rows_from(span, h->k, t0, 0, span->k), .per_query = h->K};
    if (span->shape.rounds)
        take_halves(span, h->k, t0, 0, span->k_16);
    for (size_t query = queries_of(span); query-- > 0;) {
        from.queries = rows_from(span, h->q, t0, query * h->K, span->q + query * block);
        if (span->shape.rounds)
            take_halves(span, h->q, t0, query * h->K, span->q_16 + query * block);
    }
    if (from.queries.data == span->q)
        from.per_query = block;
    return from;
}

/* From FWM_LANES rows' vectors of squares. */
static void factors_of_squares(const real *squares, real *factors)
{
    vec sums[FWM_LANES];
    for (size_t t = 0; t < FWM_LANES; t++)
        sums[t] = vec_load(squares + t * FWM_LANES);
    vec_store(factors, vec_sums(sums));
    l2_factors(factors);
}

/* a times what normalises each row. squares: a vector for each row (NULL: they are still to be made). */
static void find_factors(const Span *span, FwmNorm norm, real a, const real *rows, const real *squares, real *factors)
{
    const size_t all = span->quads * QUAD, ld = span->shape.ld;
    for (size_t t = 0; t < all; t += FWM_LANES) {
        if (norm == FWM_NO_NORM)
            vec_store(factors + t, (vec){0} + 1);
        else if (squares)
            factors_of_squares(squares + t * FWM_LANES, factors + t);
        else
            qk_norm_factors(norm, fwm_min(FWM_LANES, all - t), ld, rows + t * ld, ld, factors + t);
        vec_store(factors + t, a * vec_load(factors + t));
    }
}

/* Whether a row's factor, a times what normalises it, stays out of the row. What normalises it says how small it is. */
static bool stands_apart(real factor, real a)
{
    const real size = FWM_FABS(factor), most = (real)LARGEST_APART * (FWM_FABS(a) < 1 ? FWM_FABS(a) : 1);
    return size >= (real)SMALLEST_APART && size <= most;
}

static bool all_stand_apart(size_t n, real a, const real *factors)
{
    int all = 1;
    for (size_t t = 0; t < n; t++)
        all &= stands_apart(factors[t], a);
    return all;
}

/* Rows of which the factor does not stand apart are multiplied by it, the rounded ones too. */
static void apply_factors(const Span *span, real a, real *rows, uint16_t *halves, real *factors)
{
    const size_t ld = span->shape.ld;
    for (size_t t = 0; t < span->n; t++) {
        if (stands_apart(factors[t], a))
            continue;
        scale(ld, factors[t], rows + t * ld, rows + t * ld);
        if (span->shape.rounds)
            write_numbers(FWM_BFLOAT16, ld, rows + t * ld, halves + t * ld);
        factors[t] = 1;
    }
}

/* Whether there were any. */
static bool apply_unusual_factors(const Span *span, real a)
{
    const size_t R = queries_of(span), ld = span->shape.ld;
    bool all = all_stand_apart(span->n, 1, span->k_factors);
    for (size_t query = 0; query < R; query++)
        all = all && all_stand_apart(span->n, a, span->q_factors + query * SPAN);
    if (all)
        return false;
    apply_factors(span, 1, span->k, span->k_16, span->k_factors);
    for (size_t query = 0; query < R; query++) {
        const size_t at = query * SPAN;
        apply_factors(span, a, span->q + at * ld, span->q_16 + at * ld, span->q_factors + at);
    }
    return true;
}

/* The products of all quads, and copies of their rows. squares is a constant in each call. */
ALWAYS_INLINE void make_dots(const Span *span, const RowSource *from, bool squares)
{
    for (size_t i = 0; i < span->quads; i++)
        pairs_of_rows(span, from, i, false, squares, (QuadRows){0}, span->dots);
}

void load_span_rows(const ValueHead *h, size_t t0, Span *span)
{
    const FwmNorm norm = h->call->qk_norm;
    const real a = (real)h->call->scale;
    const bool channels = span->shape.gate == FWM_CHANNEL_GATE, squares = norm == FWM_L2_NORM && !channels;
    const RowSource stored = take_rows(h, t0, span), copies = copies_of(span);
    if (squares)
        make_dots(span, &stored, true);
    else if (!channels)
        make_dots(span, &stored, false);
    find_factors(span, norm, 1, span->k, squares ? span->squares : NULL, span->k_factors);
    for (size_t query = 0; query < queries_of(span); query++) {
        const size_t at = query * SPAN;
        find_factors(span, norm, a, span->q + at * span->shape.ld,
                     squares ? span->squares + (SPAN + at) * FWM_LANES : NULL, span->q_factors + at);
    }
    if (apply_unusual_factors(span, a) && !channels)
        make_dots(span, &copies, false);
    for (size_t i = 0; i < span->quads && !channels; i++)
        normalise_pairs(span, i, span->dots);
}
