/* The rules at one token: from a call's arrays to what the core works on (write key k, erase key e, queries q, written value u,
 * gate), and the core's gradients back to the arrays.
 *
 *     rule                    e        u
 *     sums                    -        v
 *     delta rules             beta k   beta v
 *     Gated DeltaNet 2        b * k    w * v        element by element
 *
 * k and q are normalised first, if asked, and q is scaled. Rows are padded with zeros to ld. fast_weight_memory takes k and the
 * queries alone. */
#ifndef FWM_KERNELS_MEMORY_TOKENS_H
#define FWM_KERNELS_MEMORY_TOKENS_H

#include "kernels/memory/head.h"

#define erases_of FWM_NAME(erases_of)
#define load_key FWM_NAME(load_key)
#define load_queries FWM_NAME(load_queries)
#define load_token FWM_NAME(load_token)
#define load_gate FWM_NAME(load_gate)
#define exponentials FWM_NAME(exponentials)
#define load_value FWM_NAME(load_value)
#define store_key FWM_NAME(store_key)
#define store_queries FWM_NAME(store_queries)
#define store_token FWM_NAME(store_token)
#define store_value FWM_NAME(store_value)

bool erases_of(const FwmMemory *m);

/* k; the R queries, rows of ld */
void load_key(const Head *, size_t t, size_t ld, real *k);
void load_queries(const Head *, size_t t, size_t ld, real *q, size_t q_stride);

/* k, e (untouched if the rule erases nothing), and the queries unless q is NULL. */
void load_token(const Head *, size_t t, size_t ld, real *k, real *e, real *q, size_t q_stride);

/* g: a row of ld numbers for a channel gate (0 behind K), else one number. */
void load_gate(const Head *, size_t t, size_t ld, real *g);

/* x = exp(x) */
void exponentials(size_t n, real *x);

/* Columns j0 .. j0 + n - 1 of u. */
void load_value(const Head *, size_t t, size_t j0, size_t n, real *u);

/* Backward of load_value: dv, and dw or a part of dbeta, which is returned. */
real store_value(const Head *, size_t t, size_t j0, size_t n, const real *du);

/* Backward of load_key and load_queries. dk and dq are overwritten; row has room for ld numbers. The first value head of a key or
 * query head writes its gradient, the others add to it in order. */
void store_key(const Head *, size_t t, size_t ld, real *dk, real *row);
void store_queries(const Head *, size_t t, size_t ld, real *dq, size_t q_stride, real *row);

/* Backward of load_token, k as it gave it; dbeta is the sum that store_value returned. */
void store_token(const Head *, size_t t, size_t ld, const real *k, real dbeta, real *dk, const real *de, real *dq, size_t q_stride,
                 real *row);

#endif
