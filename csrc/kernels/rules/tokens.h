/* The rules at one token: from a call's arrays to what the core works on (write key k, erase key e, queries q, written
 * value u, gate), and the core's gradients back to the arrays.
 *
 *     rule                    e        u
 *     sums                    -        v
 *     delta rules             beta k   beta v
 *     Gated DeltaNet 2        b * k    w * v        element by element
 *
 * k and q are normalised first, if asked, and q is scaled. Rows are padded with zeros to ld. fast_weight_memory takes k
 * and the queries alone. */
#ifndef FWM_KERNELS_RULES_TOKENS_H
#define FWM_KERNELS_RULES_TOKENS_H

#include "kernels/rules/head.h"

#define erases_of FWM_NAME(erases_of)
#define load_keys FWM_NAME(load_keys)
#define load_queries FWM_NAME(load_queries)
#define load_erase_keys FWM_NAME(load_erase_keys)
#define load_gates FWM_NAME(load_gates)
#define load_decays FWM_NAME(load_decays)
#define load_value FWM_NAME(load_value)
#define store_key FWM_NAME(store_key)
#define store_queries FWM_NAME(store_queries)
#define store_token FWM_NAME(store_token)
#define store_value FWM_NAME(store_value)

bool erases_of(const FwmRuleCall *m);

/* Of n tokens from t0 on: k, rows of ld numbers; R queries a token, those of a token per_query apart, a query's tokens
 * per_token; e, from k (untouched if the rule erases nothing). */
void load_keys(const Head *, size_t t0, size_t n, size_t ld, real *k);
void load_queries(const Head *, size_t t0, size_t n, size_t ld, real *q, size_t per_token, size_t per_query);
void load_erase_keys(const Head *, size_t t0, size_t n, size_t ld, const real *k, real *e);

/* g: n rows of ld numbers for a channel gate (0 behind K), else n numbers. */
void load_gates(const Head *, size_t t0, size_t n, size_t ld, real *g);

/* a = exp(g) of a token, and its two parts (exp_in_two): ld numbers each, whatever the gate. */
void load_decays(const Head *, size_t t, size_t ld, real *a, real *rest, lane_number *one_more);

/* Columns j0 .. j0 + n - 1 of u. */
void load_value(const Head *, size_t t, size_t j0, size_t n, real *u);

/* Backward of load_value: dv, and dw or a part of dbeta, which is returned. */
real store_value(const Head *, size_t t, size_t j0, size_t n, const real *du);

/* Backward of load_keys and load_queries, at one token. dk and dq are overwritten; row has room for ld numbers. The
 * first value head of a key or query head writes its gradient, the others add to it in order. */
void store_key(const Head *, size_t t, size_t ld, real *dk, real *row);
void store_queries(const Head *, size_t t, size_t ld, real *dq, size_t q_stride, real *row);

/* Backward of all of them, k as load_keys gave it; dbeta is the sum that store_value returned. */
void store_token(const Head *, size_t t, size_t ld, const real *k, real dbeta, real *dk, const real *de, real *dq,
                 size_t q_stride, real *row);

#endif
