/* A value head of a sequence: where its tokens lie in the arrays of a call. */
#ifndef FWM_KERNELS_RULES_HEAD_H
#define FWM_KERNELS_RULES_HEAD_H

#include "kernels/base/vector.h"
#include "kernels/rules/rule.h"

enum { C = FWM_TILE }; /* tokens of a chunk */

typedef struct {
    real *data;    /* of the first token; NULL where the call has no such array */
    size_t stride; /* from a token to the next */
} Tokens;

typedef struct {
    const FwmRuleCall *m;
    size_t T, K, V, R; /* R query heads read this state */
    Tokens q, k, v, g, beta, b, w, o;
    Tokens dout, dq, dk, dv, dg, dbeta, db, dw;
    const real *initial_state, *dfinal_state; /* K x V, NULL for zeros */
    real *final_state, *dinitial_state;       /* K x V, NULL where nobody asks */
    const real *initial_sum;                  /* K, of the key head; with normalize only, as the next ones */
    const real *dfinal_sum;                   /* NULL but for the first value head of the key head: it counts once */
    real *final_sum, *dinitial_sum;
    bool first_of_key, first_of_query; /* the first value head of its key or query head: later ones add to dk and dq */
} Head;

/* numbers of a head at each token: inputs, and what is written, whose tokens lie close together */
static inline Tokens read_from(FwmTokens array, size_t first_token, size_t head, size_t numbers)
{
    if (!array.data)
        return (Tokens){NULL, 0};
    return (Tokens){(real *)array.data + first_token * array.stride + head * numbers, array.stride};
}

static inline Tokens written_to(void *array, size_t first_token, size_t heads, size_t head, size_t numbers)
{
    return read_from((FwmTokens){array, heads * numbers}, first_token, head, numbers);
}

static inline real *token(Tokens x, size_t t)
{
    return x.data + t * x.stride;
}

/* to = row, or += row: value heads that share a gradient add to it in order. */
static inline void give(size_t n, const real *restrict row, bool first, real *restrict to)
{
    for (size_t i = 0; i < n; i++)
        to[i] = first ? row[i] : to[i] + row[i];
}

/* n columns of a state, from state on, whose rows are V numbers apart (NULL: zeros), to rows of ld numbers, and back.
 */
static inline void load_columns(size_t K, size_t V, size_t n, size_t ld, const real *state, real *S)
{
    for (size_t i = 0; i < K; i++)
        load_row(n, ld, state ? state + i * V : NULL, S + i * ld);
}

static inline void store_columns(size_t K, size_t V, size_t n, size_t ld, const real *S, real *state)
{
    for (size_t i = 0; i < K; i++)
        copy(n, S + i * ld, state + i * V);
}

static inline real *matrix_of(const void *array, size_t index, size_t numbers)
{
    return array ? (real *)array + index * numbers : NULL;
}

static inline Head head_of(const FwmRuleCall *m, size_t sequence, size_t hv)
{
    const size_t t0 = (size_t)m->offsets[sequence], h = key_head(m, hv), hq = first_query_head(m, hv),
                 R = queries_per_state(m);
    const size_t K = m->K, V = m->V, HO = m->HQ > m->HV ? m->HQ : m->HV, per_gate = m->gate == FWM_CHANNEL_GATE ? K : 1;
    const size_t state = sequence * m->HV + hv, sum = sequence * m->H + h;
    const bool first_of_key = hv % (m->HV / m->H) == 0;
    return (Head){
        .m = m,
        .T = sequence_length(m, sequence),
        .K = K,
        .V = V,
        .R = R,
        .q = read_from(m->q, t0, hq, K),
        .dq = written_to(m->dq, t0, m->HQ, hq, K),
        .k = read_from(m->k, t0, h, K),
        .dk = written_to(m->dk, t0, m->H, h, K),
        .v = read_from(m->v, t0, hv, V),
        .dv = written_to(m->dv, t0, m->HV, hv, V),
        .g = read_from(m->g, t0, hv, per_gate),
        .dg = written_to(m->dg, t0, m->HV, hv, per_gate),
        .beta = read_from(m->beta, t0, hv, 1),
        .dbeta = written_to(m->dbeta, t0, m->HV, hv, 1),
        .b = read_from(m->b, t0, hv, K),
        .db = written_to(m->db, t0, m->HV, hv, K),
        .w = read_from(m->w, t0, hv, V),
        .dw = written_to(m->dw, t0, m->HV, hv, V),
        .o = written_to(m->o, t0, HO, hv * R, V),
        .dout = read_from(m->dout, t0, hv * R, V),
        .initial_state = matrix_of(m->initial_state, state, K * V),
        .dfinal_state = matrix_of(m->dfinal_state, state, K * V),
        .final_state = matrix_of(m->final_state, state, K * V),
        .dinitial_state = matrix_of(m->dinitial_state, state, K * V),
        .initial_sum = matrix_of(m->initial_sum, sum, K),
        .dfinal_sum = first_of_key ? matrix_of(m->dfinal_sum, sum, K) : NULL,
        .final_sum = matrix_of(m->final_sum, sum, K),
        .dinitial_sum = matrix_of(m->dinitial_sum, sum, K),
        .first_of_key = first_of_key,
        .first_of_query = m->HQ >= m->HV || hv % (m->HV / m->HQ) == 0,
    };
}

/* The head from token t on; states are those of the whole. */
static inline Head head_from(const Head *h, size_t t)
{
    Head rest = *h;
    Tokens *const all[] = {&rest.q,    &rest.k,  &rest.v,  &rest.g,  &rest.beta, &rest.b,     &rest.w,  &rest.o,
                           &rest.dout, &rest.dq, &rest.dk, &rest.dv, &rest.dg,   &rest.dbeta, &rest.db, &rest.dw};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (all[i]->data)
            all[i]->data += t * all[i]->stride;
    rest.T -= t;
    return rest;
}

/* Columns j0 .. of n rows of numbers, from one place to another. */
static inline void copy_rows(size_t n, size_t j0, size_t columns, Tokens from, Tokens to)
{
    for (size_t t = 0; t < n; t++)
        copy(columns, token(from, t) + j0, token(to, t) + j0);
}

#endif
