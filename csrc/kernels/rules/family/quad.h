/* A quad on a block of columns, once its readers have read the state: what slab.c and slab_rounded.c have in common.
 * span.h has the equations. */
#ifndef FWM_KERNELS_RULES_FAMILY_QUAD_H
#define FWM_KERNELS_RULES_FAMILY_QUAD_H

#include "kernels/rules/family/span.h"

enum { BLOCK = 2 }; /* vectors of columns, at most, that are worked on at once */

/* x_t = factor_t x_t */
ALWAYS_INLINE void scale_rows(size_t nv, const real *factors, vec x[QUAD][BLOCK])
{
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            x[t][v] *= factors[t];
}

/* n_t -= e_t S0 + sum_{s < t} A_ts n_s */
ALWAYS_INLINE void solve(size_t nv, const real *pairs, vec read[QUAD][BLOCK], vec n[QUAD][BLOCK])
{
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++) {
            n[t][v] -= read[t][v];
#pragma GCC unroll 4
            for (size_t s = 0; s < t; s++)
                n[t][v] -= pairs[ERASE_PAIR(t, s)] * n[s][v];
        }
}

/* o_t = q_t S0 + sum_{s <= t} P_ts n_s, times the reciprocals (NULL: 1) */
ALWAYS_INLINE void store_read(size_t nv, const real *pairs, vec read[QUAD][BLOCK], vec n[QUAD][BLOCK],
                              const real *reciprocal, real *o, size_t ld)
{
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++) {
            vec y = read[t][v];
#pragma GCC unroll 4
            for (size_t s = 0; s <= t; s++)
                y += pairs[QUERY_PAIR(t, s)] * n[s][v];
            vec_store(o + t * ld + v * FWM_LANES, reciprocal ? reciprocal[t] * y : y);
        }
}

/* Row i of S = c S0 + k^T n on nv vectors of columns, and in s. A fold adds up the four products before it adds S0, of
 * which c may be nearly all; without one c is 1. */
ALWAYS_INLINE void write_row(size_t nv, bool folds, size_t i, const real *k, size_t ld, Decay c, vec n[QUAD][BLOCK],
                             const real *S0, real *S, vec s[BLOCK])
{
    vec before[BLOCK];
#pragma GCC unroll 2
    for (size_t v = 0; v < nv; v++) {
        before[v] = vec_in_register(vec_load(S0 + v * FWM_LANES));
        s[v] = folds ? c.rest[i] * before[v] : before[v];
    }
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            s[v] += k[t * ld + i] * n[t][v];
#pragma GCC unroll 2
    for (size_t v = 0; v < nv; v++) {
        s[v] = folds ? s[v] + vec_masked(before[v], c.one_more[i]) : s[v];
        vec_store(S + v * FWM_LANES, s[v]);
    }
}

#endif
