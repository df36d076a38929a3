/* A span: up to 64 tokens of a head of a rule that erases, in quads of four, and what can be computed of it without the
 * state.
 *
 * A quad reads and writes a state that is S0 before it. With a_t = exp(g_t) (1 without a gate; one number or K of
 * them), and products over the tokens after s up to t, tokens 0 .. 3 of a quad:
 *
 *     e0_t = (a_0 .. a_t) e_t,   q0_t = (a_0 .. a_t) q_t     readers of S0
 *     k1_s = (a_{s+1} .. a_3) k_s                            a write as it reaches the quad's end
 *     A_ts = e_t . (a_{s+1} .. a_t) k_s,  s < t              a write as it reaches an erase key
 *     P_ts = q_t . (a_{s+1} .. a_t) k_s,  s <= t             .. and a query (R of them, scaled)
 *
 *     N_t = u_t - e0_t S0 - sum_{s < t} A_ts N_s,    o_t = q0_t S0 + sum_{s <= t} P_ts N_s,
 *     S = diag(a_0 .. a_3) S0 + k1^T N
 *
 * The state is decayed only now and then: with c = the product of all a since it was last decayed, up to S0, it is
 * S~ = S0 / c that is kept, and c stands in the rows, c e0_t, c q0_t and k1_s / (c a_0 .. a_3). A fold, after the last
 * quad of a span, wherever c is about to leave [2^-20, 2^20], and after a quad whose gates are weak, multiplies the
 * state by its c. So strong gates lose no precision: what is divided by is never small. Nor do weak ones: a factor near
 * 1 that is rounded at every token, always to the same side, would add up over thousands of tokens, but the c of a fold
 * is exp(a sum) or a product in double, and is kept in two numbers (exp_in_two).
 *
 * A span is filled up to whole quads with tokens of zeros and a gate of 1, which read and write nothing.
 *
 * Derived in docs/mathematics/rules.md. */
#ifndef FWM_KERNELS_RULES_FAMILY_SPAN_H
#define FWM_KERNELS_RULES_FAMILY_SPAN_H

#include "kernels/base/arena.h"
#include "kernels/base/gemm.h"
#include "kernels/rules/family/shape.h"

enum {
    QUAD = 4,
    QUADS = 16,          /* of a span, at most */
    SPAN = QUADS * QUAD, /* tokens of a span */
    PAIRS = 16,      /* of a quad: 6 of an erase key with a key before it, and 10 of a query with one up to its own */
    QUERY_PAIRS = 6, /* where those of the query begin */
};

/* Where the pair of reader t with key s stands among the pairs of a quad. */
#define ERASE_PAIR(t, s) ((t) * ((t) - 1) / 2 + (s))
#define QUERY_PAIR(t, s) (QUERY_PAIRS + (t) * ((t) + 1) / 2 + (s))

typedef struct {
    FamilyShape shape;
    size_t n, quads;             /* tokens; quads of them */
    real *k, *q;                 /* SPAN x ld, R x SPAN x ld: rows as they are stored */
    real *k_factors, *q_factors; /* SPAN, R x SPAN: what normalises and scales them: key t is k_factors[t] k_t */
    real *squares;               /* (1 + R) x SPAN x vector: on the way to the factors, sums of squares */
    uint16_t *k_16, *q_16;       /* of a shape that rounds: k and q in bfloat16 */
    real *e0, *q0, *k1; /* with a channel gate: the same shapes, as they read S~ and are written to it; else k, q, k */
    real *erases, *reads,
        *writes; /* SPAN, R x SPAN, SPAN: what e0, q0 and k1 are to be multiplied by, unless the gate is of channels */
    real *dots;  /* QUADS x R x PAIRS: k_t . k_s and q_t . k_s, without decays; not with a channel gate */
    real *pairs; /* QUADS x R x PAIRS: A and P; A with the first query */
    real *a;     /* SPAN x ld, channel gate */
    double *scalars;        /* SPAN: a, scalar gate */
    real *strength;         /* SPAN: e_t = strength_t k_t; 1 where e_t = b_t k_t */
    real *c, *sums, *lost;  /* ld: c, the sum of the gates in it, and what products of a have lost in rounding */
    bool kept[QUADS];       /* whether the state after the quad is kept for the caller */
    bool folds[QUADS];      /* whether the state is folded after the quad */
    Decay c_of_fold[QUADS]; /* ld: by which c, if so or if it is kept */
    real *reciprocal;       /* R x SPAN: of the denominators, with normalize */
} Span;

#define take_span FWM_NAME(take_span)
#define prepare_span FWM_NAME(prepare_span)
#define load_span_values FWM_NAME(load_span_values)
#define load_span_rows FWM_NAME(load_span_rows)
#define decayed_pairs FWM_NAME(decayed_pairs)

static inline size_t queries_of(const Span *span)
{
    return span->shape.readers - 1;
}

Span take_span(const FamilyShape *, Arena *arena);

/* Prepares the span of tokens t0 .. of a head. The state is folded after every `fold_every` tokens, a multiple of QUAD.
 * With normalize and queries, sum (ld) must be that of the keys before, and becomes that of the keys after it. With
 * `shared`, the span must still hold what was prepared for another value head with the same keys and queries. */
void prepare_span(const ValueHead *, size_t t0, size_t fold_every, bool shared, Span *, real *sum);

/* Columns j0 .. of u of a span's n tokens, in rows of ld numbers; zeros up to the end of the last chunk and vector. */
void load_span_values(const ValueHead *, size_t t0, size_t n, size_t j0, size_t columns, size_t ld, real *u);

/* The part of prepare_span that is in span_rows.c, of a span whose n and quads are set: keys, queries, their factors,
 * and dots unless the gate is of channels. */
void load_span_rows(const ValueHead *, size_t t0, Span *);

/* With a channel gate and the quad's erase keys e, rows of ld numbers: pairs of quad i, without the strengths. */
void decayed_pairs(const Span *, size_t i, const real *e);

/* x, times the factor where all bits are set. */
static inline vec times_where(vec x, const lane_number *mask, real factor)
{
    const vec one = (vec){0} + 1;
    return x * vec_select((vec_mask)vec_load((const real *)mask), (vec){0} + factor, one);
}

#endif
