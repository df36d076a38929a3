/* What the forward and the backward of fast_weight_memory share: a chunk of a head's tokens, and the step over it. */
#ifndef FWM_KERNELS_RULES_FAST_WEIGHT_MEMORY_FAST_WEIGHT_MEMORY_H
#define FWM_KERNELS_RULES_FAST_WEIGHT_MEMORY_FAST_WEIGHT_MEMORY_H

#include "kernels/base/arena.h"
#include "kernels/rules/head.h"

/* Tokens start .. start + n - 1. Rows t R .. t R + R - 1 of q belong to token t of the chunk. */
typedef struct {
    size_t ld_k, ld_v; /* K and V, padded */
    size_t length;     /* tokens of a chunk: C, or 1 for the plain recurrence */
    size_t start, n;
    real *k, *q;     /* C x ld_k, C R x ld_k: normalised, q scaled */
    real *k_t;       /* K x C, transposed */
    real *gram, *qk; /* C x C: k_t . k_j; C R x C: q_i . k_j */
    real *d, *w;     /* C x ld_v: v - r (at first v); beta d / s */
    real *scaled;    /* C x ld_v: of w, to the chunk's end */
    real *fade;      /* (C + 1) x (C + 1): see faded */
} Chunk;

/* A call on several threads. */
typedef struct {
    const FwmRuleCall *m;
    char *scratch;
    size_t bytes; /* of it, for each thread */
} Work;

/* 1 / (s_{from+1} .. s_to): what is left of state `from`, of the chunk's states 0 .. n, in state `to`. */
static inline real faded(const Chunk *c, size_t from, size_t to)
{
    return c->fade[to * (C + 1) + from];
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

/* What the sizes of scratch memory follow from: a head of the longest sequence. */
static inline Head longest_head(const FwmRuleCall *m)
{
    return (Head){.m = m, .T = longest_sequence(m), .K = m->K, .V = m->V, .R = queries_per_state(m)};
}

#define take_chunk FWM_NAME(fwm_take_chunk)
#define load_chunk FWM_NAME(fwm_load_chunk)
#define multiply_keys FWM_NAME(fwm_multiply_keys)
#define begin_fading FWM_NAME(fwm_begin_fading)
#define fade_states FWM_NAME(fwm_fade_states)
#define write_tokens FWM_NAME(fwm_write_tokens)
#define fast_weight_memory_backward_scratch FWM_NAME(fwm_backward_scratch)
#define fast_weight_memory_backward FWM_NAME(fwm_backward)

/* The arrays of a chunk. */
Chunk take_chunk(const Head *h, Arena *arena);

/* Keys and, if asked for, queries; d = v. */
void load_chunk(const Head *h, Chunk *c, size_t start, bool with_queries);

/* k_t and gram */
void multiply_keys(const Head *h, const Chunk *c);

/* fade of state 0 in itself; then of the states before token t in the state after it. */
void begin_fading(const Chunk *c);
void fade_states(const Chunk *c, size_t t, real s);

/* The state S0 before a loaded chunk becomes S1, the one after it: chunks of one token by the plain recurrence, and in
 * place if wanted, others in the fast form. r (C x ld_v) and s (C) are kept for the backward. */
void write_tokens(const Head *h, const Chunk *c, const real *S0, real *S1, real *r, real *s);

size_t fast_weight_memory_backward_scratch(const void *call, int threads);
void fast_weight_memory_backward(const void *call, int threads, void *scratch);

#endif
