/* A chunk of C tokens of a head, and what can be computed of it without the state.
 *
 * Tokens 0 .. C - 1 read and write a state that is S0 before the chunk. A token t has two kinds of readers: the erase
 * key e_t, which reads before the write of t, and the queries q_t (R of them, scaled), which read after it. X stacks
 * the readers, E first: M = readers C rows. With a_t = exp(g_t) (1 without a gate; one number or K of them), and
 * products over the tokens after s up to t,
 *
 *     X0_t = (a_0 .. a_t) x_t                     a reader of S0
 *     K1_s = (a_{s+1} .. a_{C-1}) k_s             a write as it reaches the chunk's end
 *     scores_ts = x_t . (a_{s+1} .. a_t) k_s      a write as it reaches a reader: s < t for E, s <= t for Q, else 0
 *     decay = a_0 .. a_{C-1}
 *
 * so that, with N_t = u_t - what e_t reads (the values that are written), Y_t = what q_t reads,
 *
 *     [U - N; Y] = X0 S0 + scores N,      S = diag(decay) S0 + K1^T N.
 *
 * Decays are products of numbers, never a quotient of them or a difference of sums of gates: strong gates lose no
 * precision. Nor do weak ones: a factor near 1 that is rounded at every token, always to the same side, would add up
 * over thousands of tokens. So a scalar gate's products are computed in double, a channel gate's factors make up for
 * each other's rounding (exp_of_product), and a chunk's decay of the state, which compounds from chunk to chunk, is
 * kept in two numbers.
 *
 * The tail, a last chunk with fewer tokens, is filled up with tokens of zeros and a gate of 1, which read and write
 * nothing.
 *
 * Derived in docs/mathematics/rules.md. */
#ifndef FWM_KERNELS_RULES_FAMILY_CHUNK_H
#define FWM_KERNELS_RULES_FAMILY_CHUNK_H

#include "kernels/base/arena.h"
#include "kernels/base/gemm.h"
#include "kernels/rules/family/shape.h"

typedef struct {
    FamilyShape shape;
    size_t n;         /* tokens, at most C */
    real *k, *x;      /* C x ld, M x ld */
    real *k1, *x0;    /* the same; k and x themselves without a gate */
    real *k_factors;  /* C: what keys have been multiplied by, to be normalised */
    real *q_factors;  /* R x n: queries, to be normalised and scaled */
    real *k_t, *k1_t; /* ld x C: transposed; no k_t with a channel gate */
    real *x0_t;       /* ld x M: transposed, for the backward only */
    real *qk;         /* R C x C: q_t . k_s, without decays; not with a channel gate */
    real *g;          /* C, scalar gate */
    real *from_start; /* C, scalar gate: a_0 .. a_t */
    real *decays;     /* C x C, scalar gate: a_{s+1} .. a_t, 0 for s > t */
    real *a;          /* C x ld, channel gate */
    real *decay;      /* ld */
    Decay in_two;     /* ld: its two parts; none without a gate */
    real *scores;     /* M x C */
    real *z0;         /* ld: the sum of keys before the chunk, with normalize */
    real *reciprocal; /* M: of the denominators, with normalize */
} Chunk;

/* What the columns of the state contribute to the gradients: sums over columns. */
typedef struct {
    real *dx0;     /* ld x M: transposed */
    real *dk1;     /* ld x C: transposed */
    real *dscores; /* M x C */
    real *ddecay;  /* ld: with a gate */
    real *dbeta;   /* C */
} ChunkGradients;

/* Scores i .. of reader m, or their gradients: 0 for tokens that it does not see, even where x is NaN. */
static inline vec where_seen(const FamilyShape *s, size_t m, size_t i, vec x)
{
    const lane_number seen = (lane_number)(m % CHUNK + (m >= CHUNK || !s->erases)) - (lane_number)i;
    return (vec)((vec_mask)x & (vec_lane_numbers() < seen));
}

#define take_chunk FWM_NAME(take_chunk)
#define take_chunk_gradients FWM_NAME(take_chunk_gradients)
#define chunk_backward_scratch FWM_NAME(chunk_backward_scratch)
#define fetch_chunk FWM_NAME(fetch_chunk)
#define prepare_chunk FWM_NAME(prepare_chunk)
#define prepare_chunk_backward FWM_NAME(prepare_chunk_backward)
#define add_chunk_gradients FWM_NAME(add_chunk_gradients)
#define chunk_backward FWM_NAME(chunk_backward)

Chunk take_chunk(const FamilyShape *, Arena *arena);
ChunkGradients take_chunk_gradients(const FamilyShape *, Arena *arena);
size_t chunk_backward_scratch(const FamilyShape *); /* bytes */

/* Fetches the keys and queries of tokens t0 .. of a head. Several chunks should be fetched before the first is
 * prepared: these rows lie far apart in memory, and so their cache misses overlap. */
void fetch_chunk(const ValueHead *, size_t t0, Chunk *);

/* Prepares a chunk that has been fetched. z0 must be set before. With `shared`, it must still hold what was prepared
 * for another value head with the same keys and queries. */
void prepare_chunk(const ValueHead *, size_t t0, bool shared, Chunk *);
void prepare_chunk_backward(Chunk *); /* what only the backward needs */

/* total += part: to be called for the slabs in a fixed order. */
void add_chunk_gradients(const FamilyShape *, const ChunkGradients *part, ChunkGradients *total);

/* From the sums over columns to the gradients of the tokens' inputs, in the head's arrays. dz (ld), the gradient of the
 * sum of keys after the chunk, becomes that of the sum before it. */
void chunk_backward(const ValueHead *, size_t t0, const Chunk *, const ChunkGradients *, real *dz, void *scratch);

#endif
