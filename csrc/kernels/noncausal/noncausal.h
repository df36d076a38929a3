/* Linear attention without a causal mask: every query reads the sum of all keys' writes. What the table offers, and
 * what forward and backward share.
 *
 *     S = S0 + sum_j k_j v_j^T,   z = z0 + sum_j k_j        over the first key_lengths[b] of N keys
 *     o_t = scale S^T q_t / den_t,   den_t = scale z . q_t + eps, or 1 without normalize
 *
 * S (K x V) for each value head, z (K) for each key head. Heads are as in kernels/rules/rule.h. */
#ifndef FWM_KERNELS_NONCAUSAL_NONCAUSAL_H
#define FWM_KERNELS_NONCAUSAL_NONCAUSAL_H

#include "api/kernels.h"
#include "kernels/base/arena.h"
#include "kernels/base/vector.h"

#define noncausal_forward_scratch FWM_NAME(noncausal_forward_scratch)
#define noncausal_backward_scratch FWM_NAME(noncausal_backward_scratch)
#define noncausal_forward FWM_NAME(noncausal_forward)
#define noncausal_backward FWM_NAME(noncausal_backward)
#define sum_writes FWM_NAME(sum_writes)
#define sum_of_keys FWM_NAME(sum_of_keys)
#define denominators_of FWM_NAME(denominators_of)

/* The passes of the operation; the call is an FwmNoncausalCall. */
size_t noncausal_forward_scratch(const void *call, int threads);
size_t noncausal_backward_scratch(const void *call, int threads);
void noncausal_forward(const void *call, int threads, void *scratch);
void noncausal_backward(const void *call, int threads, void *scratch);

#define TOKEN_TILE 64 /* tokens whose rows are gathered, multiplied and scattered at once */

/* A key head of a sequence: its tokens, and how many. */
typedef struct {
    const FwmNoncausalCall *call;
    size_t b, h, length; /* length: of keys */
    size_t group;        /* value heads of the key head */
    size_t outputs;      /* output heads of a value head */
} NoncausalHead;

static inline size_t output_heads(const FwmNoncausalCall *c)
{
    return c->HQ > c->HV ? c->HQ : c->HV;
}

static inline NoncausalHead noncausal_head(const FwmNoncausalCall *c, size_t index)
{
    const size_t b = index / c->H;
    return (NoncausalHead){.call = c,
                           .b = b,
                           .h = index % c->H,
                           .length = c->key_lengths ? (size_t)c->key_lengths[b] : c->N,
                           .group = c->HV / c->H,
                           .outputs = output_heads(c) / c->HV};
}

/* The query head that an output head reads. */
static inline size_t query_head(const FwmNoncausalCall *c, size_t output)
{
    return output / (output_heads(c) / c->HQ);
}

/* The numbers of a head at a token of sequence b, which has so many tokens. */
static inline real *numbers_at(FwmTokens x, size_t b, size_t tokens, size_t t, size_t head, size_t numbers)
{
    return (real *)x.data + (b * tokens + t) * x.stride + head * numbers;
}

/* Part `index` of a packed array, of so many numbers; NULL if there is no array. */
static inline real *part_of(const void *array, size_t index, size_t numbers)
{
    return array ? (real *)array + index * numbers : NULL;
}

/* Gathers rows of `width` numbers, `stride` apart, into rows of ld, padded with zeros. */
static inline void gather_tile(size_t rows, size_t width, const real *from, size_t stride, size_t ld, real *tile)
{
    for (size_t i = 0; i < rows; i++)
        load_row(width, ld, from + i * stride, tile + i * ld);
}

/* S (K x ld) of a value head: the initial state, and all writes. tile: TOKEN_TILE x ld. */
void sum_writes(const NoncausalHead *, size_t hv, size_t ld, real *S, real *tile);

/* z (K) of the key head; nothing without normalize. */
void sum_of_keys(const NoncausalHead *, real *z);

/* den of n tokens' queries, from q on, `stride` apart. */
void denominators_of(const FwmNoncausalCall *, size_t n, const real *q, size_t stride, const real *z, real *den);

#endif
