/* A value head of a sequence: where its tokens lie in the arrays of a call. */
#ifndef FWM_KERNELS_RULES_HEAD_H
#define FWM_KERNELS_RULES_HEAD_H

#include <string.h>

#include "kernels/base/half.h"
#include "kernels/base/transpose.h"
#include "kernels/base/vector.h"
#include "kernels/rules/rule.h"

enum { CHUNK = FWM_TILE }; /* tokens of a chunk: C in shapes and equations */

typedef struct {
    real *data;         /* the first token; NULL if the call has no such array; of 16 bits where `numbers` says so */
    size_t stride;      /* numbers from one token to the next */
    FwmNumbers numbers; /* FWM_REAL in a backward */
} Tokens;

typedef struct {
    const FwmRuleCall *call;
    size_t T, K, V, R; /* R query heads read this state */
    Tokens q, k, v, g, beta, b, w, erase, o;
    Tokens dout, dq, dk, dv, dg, dbeta, db, dw, derase;
    const real *initial_state, *dfinal_state; /* K x V, or V x K if state_v_first; NULL for zeros */
    real *final_state, *dinitial_state;       /* the same; NULL if not wanted */
    const real *initial_sum;                  /* K, of the key head; only with normalize, as are the other sums */
    const real *dfinal_sum; /* NULL except for the key head's first value head, so that it counts once */
    real *final_sum, *dinitial_sum;
    real *kept_states, *kept_sums;     /* the first that is kept; NULL if not wanted, kept_sums as dfinal_sum */
    bool first_of_key, first_of_query; /* the first value head of its key or query head: later ones add to dk and dq */
} ValueHead;

/* A head's tokens in an array: in an input, whose tokens have a stride, and in a packed array that is written. */
static inline Tokens strided_tokens(FwmTokens array, size_t first_token, size_t head, size_t numbers)
{
    if (!array.data)
        return (Tokens){0};
    const size_t before = first_token * array.stride + head * numbers;
    return (Tokens){(real *)((char *)array.data + before * bytes_of_number(array.numbers)), array.stride,
                    array.numbers};
}

static inline Tokens packed_tokens(void *array, size_t first_token, size_t heads, size_t head, size_t numbers)
{
    return strided_tokens((FwmTokens){array, heads * numbers, FWM_REAL}, first_token, head, numbers);
}

/* The tokens from token t on, without the first i numbers of each. */
static inline Tokens tokens_from(Tokens x, size_t t, size_t i)
{
    const size_t before = t * x.stride + i;
    return (Tokens){(real *)((char *)x.data + before * bytes_of_number(x.numbers)), x.stride, x.numbers};
}

/* Of numbers that are FWM_REAL. */
static inline real *token(Tokens x, size_t t)
{
    return x.data + t * x.stride;
}

/* Number i of token t. */
static inline real number_of(Tokens x, size_t t, size_t i)
{
    return read_number(x.numbers, x.data, t * x.stride + i);
}

/* Numbers i .. i + n - 1 of token t, padded with zeros to ld; and stored there. */
static inline void load_numbers(Tokens x, size_t t, size_t i, size_t n, size_t ld, real *to)
{
    read_numbers(x.numbers, n, tokens_from(x, t, i).data, to);
    for (size_t j = n; j < ld; j++)
        to[j] = 0;
}

static inline void store_numbers(const real *from, size_t n, Tokens x, size_t t, size_t i)
{
    write_numbers(x.numbers, n, from, tokens_from(x, t, i).data);
}

/* to = row if first, else to += row: value heads that share a gradient add to it in order. */
static inline void accumulate(size_t n, const real *restrict row, bool first, real *restrict to)
{
    if (first)
        copy(n, row, to);
    else
        for (size_t i = 0; i < n; i++)
            to[i] += row[i];
}

/* Loads columns j0 .. j0 + n - 1 of a state of the call (NULL: zeros) into K rows of ld numbers, padded with zeros.
 * store_columns stores them back. */
static inline void load_columns(const ValueHead *h, size_t j0, size_t n, size_t ld, const real *state, real *S)
{
    const bool v_first = state && h->call->state_v_first;
    if (v_first)
        transpose(n, h->K, state + j0 * h->K, h->K, S, ld);
    for (size_t i = 0; i < h->K; i++, S += ld)
        if (v_first)
            memset(S + n, 0, (ld - n) * sizeof(real));
        else
            load_row(n, ld, state ? state + i * h->V + j0 : NULL, S);
}

static inline void store_columns(const ValueHead *h, size_t j0, size_t n, size_t ld, const real *S, real *state)
{
    if (h->call->state_v_first)
        transpose(h->K, n, S, ld, state + j0 * h->K, h->K);
    else
        for (size_t i = 0; i < h->K; i++)
            copy(n, S + i * ld, state + i * h->V + j0);
}

/* Matrix (or row) `index` of a packed array, of so many numbers; NULL if there is no array. */
static inline real *matrix_of(const void *array, size_t index, size_t numbers)
{
    return array ? (real *)array + index * numbers : NULL;
}

/* How many states the sequences before this one have kept. */
static inline size_t kept_before(const FwmRuleCall *call, size_t sequence)
{
    size_t before = 0;
    for (size_t i = 0; i < sequence; i++)
        before += sequence_length(call, i) / call->keep_every;
    return before;
}

/* Where the state after the first `tokens` of the sequence is to be kept, and its sum; NULL if it is not. */
static inline real *kept_state(const ValueHead *h, size_t tokens)
{
    const FwmRuleCall *call = h->call;
    if (!h->kept_states || tokens == 0 || tokens % call->keep_every)
        return NULL;
    return h->kept_states + (tokens / call->keep_every - 1) * call->HV * h->K * h->V;
}

static inline real *kept_sum(const ValueHead *h, size_t tokens)
{
    const FwmRuleCall *call = h->call;
    if (!h->kept_sums || tokens == 0 || tokens % call->keep_every)
        return NULL;
    return h->kept_sums + (tokens / call->keep_every - 1) * call->H * h->K;
}

static inline ValueHead head_of(const FwmRuleCall *call, size_t sequence, size_t hv)
{
    const size_t t0 = (size_t)call->offsets[sequence], h = key_head(call, hv), hq = first_query_head(call, hv),
                 R = queries_per_state(call);
    const size_t K = call->K, V = call->V, HO = call->HQ > call->HV ? call->HQ : call->HV,
                 per_gate = call->gate == FWM_CHANNEL_GATE ? K : 1;
    const size_t at = call->state_indices ? (size_t)call->state_indices[sequence] : sequence;
    const size_t state = at * call->HV + hv, sum = at * call->H + h;
    const size_t kept = call->kept_states ? kept_before(call, sequence) : 0;
    const bool first_of_key = hv % (call->HV / call->H) == 0;
    return (ValueHead){
        .call = call,
        .T = sequence_length(call, sequence),
        .K = K,
        .V = V,
        .R = R,
        .q = strided_tokens(call->q, t0, hq, K),
        .dq = packed_tokens(call->dq, t0, call->HQ, hq, K),
        .k = strided_tokens(call->k, t0, h, K),
        .dk = packed_tokens(call->dk, t0, call->H, h, K),
        .v = strided_tokens(call->v, t0, hv, V),
        .dv = packed_tokens(call->dv, t0, call->HV, hv, V),
        .g = strided_tokens(call->g, t0, hv, per_gate),
        .dg = packed_tokens(call->dg, t0, call->HV, hv, per_gate),
        .beta = strided_tokens(call->beta, t0, hv, 1),
        .dbeta = packed_tokens(call->dbeta, t0, call->HV, hv, 1),
        .b = strided_tokens(call->b, t0, hv, K),
        .db = packed_tokens(call->db, t0, call->HV, hv, K),
        .w = strided_tokens(call->w, t0, hv, V),
        .dw = packed_tokens(call->dw, t0, call->HV, hv, V),
        .erase = strided_tokens(call->erase, t0, hv, 1),
        .derase = packed_tokens(call->derase, t0, call->HV, hv, 1),
        .o = strided_tokens((FwmTokens){call->o, HO * V, call->q.numbers}, t0, hv * R, V),
        .dout = strided_tokens(call->dout, t0, hv * R, V),
        .initial_state = matrix_of(call->initial_state, state, K * V),
        .dfinal_state = matrix_of(call->dfinal_state, state, K * V),
        .final_state = matrix_of(call->final_state, state, K * V),
        .dinitial_state = matrix_of(call->dinitial_state, state, K * V),
        .initial_sum = matrix_of(call->initial_sum, sum, K),
        .dfinal_sum = first_of_key ? matrix_of(call->dfinal_sum, sum, K) : NULL,
        .final_sum = matrix_of(call->final_sum, sum, K),
        .dinitial_sum = matrix_of(call->dinitial_sum, sum, K),
        .kept_states = matrix_of(call->kept_states, kept * call->HV + hv, K * V),
        .kept_sums = first_of_key ? matrix_of(call->kept_sums, kept * call->H + h, K) : NULL,
        .first_of_key = first_of_key,
        .first_of_query = call->HQ >= call->HV || hv % (call->HV / call->HQ) == 0,
    };
}

/* The head from token t on; its states are still those of the whole sequence. */
static inline ValueHead head_from(const ValueHead *h, size_t t)
{
    ValueHead rest = *h;
    Tokens *const all[] = {&rest.q,  &rest.k,     &rest.v,     &rest.g,    &rest.beta, &rest.b,
                           &rest.w,  &rest.erase, &rest.o,     &rest.dout, &rest.dq,   &rest.dk,
                           &rest.dv, &rest.dg,    &rest.dbeta, &rest.db,   &rest.dw,   &rest.derase};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (all[i]->data)
            *all[i] = tokens_from(*all[i], t, 0);
    rest.T -= t;
    return rest;
}

/* Copies columns j0 .. j0 + columns - 1 of n tokens, `from` in numbers that are FWM_REAL. */
static inline void copy_rows(size_t n, size_t j0, size_t columns, Tokens from, Tokens to)
{
    for (size_t t = 0; t < n; t++)
        store_numbers(token(from, t) + j0, columns, to, t, j0);
}

#endif
