/* The rule fast_weight_memory, and what its forward and backward share: a chunk of a head's tokens, and the step over
 * it. */
#ifndef FWM_KERNELS_RULES_FAST_WEIGHT_MEMORY_FAST_WEIGHT_MEMORY_H
#define FWM_KERNELS_RULES_FAST_WEIGHT_MEMORY_FAST_WEIGHT_MEMORY_H

#include "kernels/base/arena.h"
#include "kernels/rules/head.h"

/* A chunk for the rule whose state has norm 1: tokens start .. start + n - 1 of a head. Rows t R .. t R + R - 1 of q
 * belong to token t of the chunk. */
typedef struct {
    size_t ld_k, ld_v; /* K and V, padded */
    size_t length;     /* tokens of a chunk: C, or 1 for the plain recurrence */
    size_t start, n;
    real *k, *q;     /* C x ld_k, C R x ld_k: normalised, q scaled */
    real *k_factors; /* C: what keys have been multiplied by for that; queries: R x n */
    real *q_factors;
    real *k_t;       /* K x C, transposed */
    real *gram, *qk; /* C x C: k_t . k_j; C R x C: q_i . k_j */
    real *d, *w;     /* C x ld_v: v - r (at first v); beta d / s */
    real *scaled;    /* C x ld_v: w, decayed to the chunk's end */
    real *fade;      /* (C + 1) x (C + 1): see faded */
} NormedChunk;

/* What the tasks of a call share. */
typedef struct {
    const FwmRuleCall *call;
    char *scratch;
    size_t bytes; /* of scratch, for each thread */
} NormedWork;

/* 1 / (s_{from+1} .. s_to): the share of state `from`, of the chunk's states 0 .. n, in state `to`. */
static inline real faded(const NormedChunk *c, size_t from, size_t to)
{
    return c->fade[to * (CHUNK + 1) + from];
}

/* target = gain target + sum_{j < n} weights_j rows_j, all of ld numbers. */
static inline void combine(size_t ld, real gain, size_t n, const real *weights, const real *rows, real *target)
{
    size_t i = 0;
    for (; i + 4 * FWM_LANES <= ld; i += 4 * FWM_LANES) {
        vec x[4];
        for (size_t v = 0; v < 4; v++)
            x[v] = gain * vec_load(target + i + v * FWM_LANES);
        for (size_t j = 0; j < n; j++)
            for (size_t v = 0; v < 4; v++)
                x[v] += weights[j] * vec_load(rows + j * ld + i + v * FWM_LANES);
        for (size_t v = 0; v < 4; v++)
            vec_store(target + i + v * FWM_LANES, x[v]);
    }
    for (; i < ld; i += FWM_LANES) {
        vec x = gain * vec_load(target + i);
        for (size_t j = 0; j < n; j++)
            x += weights[j] * vec_load(rows + j * ld + i);
        vec_store(target + i, x);
    }
}

/* <x, y>, of K rows: norms and what follows from them are summed in double. */
static inline double inner(size_t K, size_t ld, const real *x, const real *y)
{
    double total = 0;
    for (size_t i = 0; i < K; i++)
        total += dot(ld, x + i * ld, y + i * ld);
    return total;
}

/* A head of the longest sequence: the size of scratch follows from it. */
static inline ValueHead longest_head(const FwmRuleCall *call)
{
    return (ValueHead){
        .call = call, .T = longest_sequence(call), .K = call->K, .V = call->V, .R = queries_per_state(call)};
}

#define take_normed_chunk FWM_NAME(take_normed_chunk)
#define load_normed_chunk FWM_NAME(load_normed_chunk)
#define multiply_keys FWM_NAME(multiply_keys)
#define begin_fading FWM_NAME(begin_fading)
#define fade_states FWM_NAME(fade_states)
#define write_normed_chunk FWM_NAME(write_normed_chunk)
#define fast_weight_memory_rule FWM_NAME(fast_weight_memory_rule)
#define fast_weight_memory_backward_scratch FWM_NAME(fast_weight_memory_backward_scratch)
#define fast_weight_memory_backward FWM_NAME(fast_weight_memory_backward)

/* The arrays of a chunk. */
NormedChunk take_normed_chunk(const ValueHead *h, Arena *arena);

/* Loads keys and, if wanted, queries; d = v. */
void load_normed_chunk(const ValueHead *h, NormedChunk *c, size_t start, bool with_queries);

/* k_t and gram */
void multiply_keys(const ValueHead *h, const NormedChunk *c);

/* The fade of state 0 in itself; then those of the states before token t in the state after it. */
void begin_fading(const NormedChunk *c);
void fade_states(const NormedChunk *c, size_t t, real s);

/* From S0, the state before a loaded chunk, to S1, the state after it: a chunk of one token by the plain recurrence, in
 * place if both are the same array, others in the fast form. r (C x ld_v) and s (C) are what the backward needs. */
void write_normed_chunk(const ValueHead *h, const NormedChunk *c, const real *S0, real *S1, real *r, real *s);

size_t fast_weight_memory_backward_scratch(const void *rule_call, int threads);
void fast_weight_memory_backward(const void *rule_call, int threads, void *scratch);

extern const Rule fast_weight_memory_rule;

#endif
