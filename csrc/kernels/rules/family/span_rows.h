/* The keys and queries of a span as they are stored, what is to normalise them, and their products: the part of a span
 * that value heads of a key head share, and with a channel gate the products alone.
 *
 * Rows are neither normalised nor scaled. What a row reads or writes is multiplied by a number anyhow, so that its
 * factor can stand in that number, and in its products; then a row is passed over once, for the products and for the
 * sum of its squares. Only where a factor is far from 1 is the row itself multiplied, and its factor becomes 1: else
 * products of very large or small rows would leave the range of numbers. Only such a row in bfloat16 is rounded by it,
 * and other rows keep their bits. */
#ifndef FWM_KERNELS_RULES_FAMILY_SPAN_ROWS_H
#define FWM_KERNELS_RULES_FAMILY_SPAN_ROWS_H

#include "kernels/rules/family/span.h"

#define load_span_rows FWM_NAME(load_span_rows)
#define decayed_pairs FWM_NAME(decayed_pairs)

static inline size_t queries_of(const Span *span)
{
    return span->shape.readers - 1;
}

static inline const real *query_row(const Span *span, size_t query, size_t t)
{
    return token(span->queries, t) + query * span->per_query;
}

/* Of a span whose n and quads are set: keys, queries, their factors, and dots unless the gate is of channels. */
void load_span_rows(const ValueHead *, size_t t0, Span *);

/* With a channel gate and the quad's erase keys e: pairs of quad i, without the strengths. */
void decayed_pairs(const Span *, size_t i, Tokens e);

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

#endif
