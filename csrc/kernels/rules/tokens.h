/* The rules at one token: from a call's arrays to what the core works on (write key k, erase key e, queries q, written
 * value u, gate), and from the core's gradients back to the arrays.
 *
 *     rule                    e        u
 *     sums                    -        v
 *     delta rules             beta k   beta v        normalised: another number times k (normalised_delta.h)
 *     Gated DeltaNet 2        b * k    w * v        element by element
 *
 * k and q are normalised first, if the call's qk_norm says so, and q is scaled. Rows are padded with zeros to ld.
 * fast_weight_memory uses only k and the queries. */
#ifndef FWM_KERNELS_RULES_TOKENS_H
#define FWM_KERNELS_RULES_TOKENS_H

#include "kernels/rules/head.h"

#define rule_erases FWM_NAME(rule_erases)
#define load_keys FWM_NAME(load_keys)
#define load_queries FWM_NAME(load_queries)
#define read_keys FWM_NAME(read_keys)
#define read_queries FWM_NAME(read_queries)
#define normalise_keys FWM_NAME(normalise_keys)
#define normalise_queries FWM_NAME(normalise_queries)
#define load_erase_keys FWM_NAME(load_erase_keys)
#define load_strengths FWM_NAME(load_strengths)
#define load_gates FWM_NAME(load_gates)
#define load_decays FWM_NAME(load_decays)
#define load_value FWM_NAME(load_value)
#define load_values FWM_NAME(load_values)
#define store_keys FWM_NAME(store_keys)
#define store_queries FWM_NAME(store_queries)
#define store_tokens FWM_NAME(store_tokens)
#define store_values FWM_NAME(store_values)

bool rule_erases(const FwmRuleCall *call);

/* For n tokens from t0 on. Keys k: rows of ld numbers. Queries q: R of each token; the queries of a token are per_query
 * numbers apart, the tokens of a query per_token. factors: what the rows as they are stored have been multiplied by, n
 * of the keys and R x n of the queries; NULL if not wanted. Erase keys e, from k: left untouched if the rule has none.
 */
void load_keys(const ValueHead *, size_t t0, size_t n, size_t ld, real *k, real *factors);
void load_queries(const ValueHead *, size_t t0, size_t n, size_t ld, real *q, size_t per_token, size_t per_query,
                  real *factors);
void load_erase_keys(const ValueHead *, size_t t0, size_t n, size_t ld, const real *k, real *e);

/* Keys and queries in two steps: rows as they are stored, and in place what load_keys and load_queries leave. */
void read_keys(const ValueHead *, size_t t0, size_t n, size_t ld, real *k);
void read_queries(const ValueHead *, size_t t0, size_t n, size_t ld, real *q, size_t per_token, size_t per_query);
void normalise_keys(const ValueHead *, size_t n, size_t ld, real *k, real *factors);
void normalise_queries(const ValueHead *, size_t n, size_t ld, real *q, size_t per_token, size_t per_query,
                       real *factors);

/* strength, of n tokens: e = strength k; 1 where erase keys have rows of their own. */
void load_strengths(const ValueHead *, size_t t0, size_t n, real *strength);

/* g: n rows of ld numbers for a channel gate (0 beyond K), else n numbers. */
void load_gates(const ValueHead *, size_t t0, size_t n, size_t ld, real *g);

/* a = exp(g) of a token, and its two parts (exp_in_two): ld numbers each, whatever the gate. */
void load_decays(const ValueHead *, size_t t, size_t ld, real *a, real *rest, lane_number *one_more);

/* Columns j0 .. j0 + n - 1 of u. */
void load_value(const ValueHead *, size_t t, size_t j0, size_t n, real *u);

/* The same columns of n tokens from t0 on, in rows of ld numbers. */
void load_values(const ValueHead *, size_t t0, size_t n, size_t j0, size_t columns, size_t ld, real *u);

/* Backward of load_values, from rows of ld numbers: stores dv and, if the call has it, dw. dbeta (n): the columns'
 * part.
 */
void store_values(const ValueHead *, size_t t0, size_t n, size_t j0, size_t columns, size_t ld, const real *du,
                  real *dbeta);

/* Keys or queries of n tokens, as load_keys and load_queries have left them with their factors. */
typedef struct {
    const real *rows, *factors;
    size_t per_token, per_query;
} LoadedRows;

/* Backward of load_keys and load_queries. dk and dq lie as the rows do, and are overwritten. The first value head of a
 * key or query head writes its gradient, the others add to it in order. */
void store_keys(const ValueHead *, size_t t0, size_t n, size_t ld, const LoadedRows *k, real *dk);
void store_queries(const ValueHead *, size_t t0, size_t n, size_t ld, const LoadedRows *q, real *dq);

/* Backward of load_keys, load_erase_keys and load_queries. dbeta (n): the sums of what store_values left. */
void store_tokens(const ValueHead *, size_t t0, size_t n, size_t ld, const LoadedRows *k, const LoadedRows *q,
                  const real *dbeta, real *dk, const real *de, real *dq);

#endif
