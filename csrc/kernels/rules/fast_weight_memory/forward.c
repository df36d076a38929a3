/* The fast weight memory of Schlag, Munkhdalai and Schmidhuber (2021), read at every token: a delta rule whose state is
 * kept at norm 1. For each sequence and value head, state S (K x V):
 *
 *     r_t = S_{t-1}^T k_t,   d_t = v_t - r_t                      what the memory holds for the key, and what it lacks
 *     S~_t = S_{t-1} + beta_t k_t d_t^T
 *     S_t = S~_t / s_t,   s_t = max(1, |S~_t|_F)
 *     o_t = S_t^T q_t                                             q scaled
 *
 * clamp_first false leaves the first write of a sequence without an initial state as it is, s_1 = 1, as in the paper;
 * an initial state is the outcome of earlier writes, and then every write is clamped.
 *
 * The norm couples the whole state, but it follows from scalars: with n = |S_{t-1}|^2 and kk = |k|^2,
 *
 *     |S~_t|^2 = n + 2 beta (d . r) + beta^2 |d|^2 kk
 *
 * n is 1 after a clamped token. At the start of every chunk it is summed anew from the state, and a state that a
 * clamped token has left at a chunk's end is brought to norm 1 once more, so that no rounding errors are carried along.
 * A state far above norm 1 (an initial one, or a first write that is not clamped) could lose its digits in that sum:
 * there the norm is measured.
 *
 * Chunks of C = 16 tokens, so that the work is in matrix products. Dividing by s makes the rule a delta rule with decay
 * 1 / s, S_t = S_{t-1} / s_t + k_t w_t^T with w = beta d / s. With fade(a, b) = 1 / (s_{a+1} .. s_b), never above 1,
 * and S_0 the state before the chunk:
 *
 *     r_t = fade(0, t-1) S_0^T k_t + sum_{j < t} fade(j, t-1) (k_j . k_t) w_j
 *     S_t = fade(0, t) S_0 + sum_{j <= t} fade(j, t) k_j w_j^T
 *     o_t = fade(0, t) S_0^T q_t + sum_{j <= t} fade(j, t) (k_j . q_t) w_j
 *
 * In the code tokens of a chunk count from 0: token t leads from state t to state t + 1. No sum over tokens contains
 * one that comes later, not even with weight 0, so that a NaN spreads forwards only.
 *
 * A norm of 1 is the rule's usual state, and a write that changes nothing (beta = 0) leaves it there: it is not
 * clamped. As rounding errors would decide that, and the gradient with it, the plain recurrence clamps where |S~|^2
 * exceeds 1 by more than ROUNDING; the chunks, which know the change of n by itself, take an n within ROUNDING of 1 for
 * 1 at their start.
 *
 * Derived in docs/mathematics/fast_weight_memory.md. */
#include "kernels/rules/fast_weight_memory/fast_weight_memory.h"

#include <float.h>
#include <math.h>
#include <string.h>

#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/rules/tokens.h"
#include "runtime/threads.h"

#define EPSILON (FWM_REAL_IS_DOUBLE ? DBL_EPSILON : (double)FLT_EPSILON)
#define ROUNDING (FWM_REAL_IS_DOUBLE ? 1e-13 : 5e-7) /* of a norm around 1, squared: what its sum may be off by */
#define LARGEST_CARRIED 4 /* the largest |S|^2 from which the next norm is computed, not measured */

NormedChunk take_normed_chunk(const ValueHead *h, Arena *arena)
{
    const size_t readers = CHUNK * h->R;
    NormedChunk c = {.ld_k = fwm_padded(h->K),
                     .ld_v = fwm_padded(h->V),
                     .length = h->call->method == FWM_RECURRENT || h->T == 1 ? 1 : CHUNK};
    c.k = take(arena, CHUNK * c.ld_k);
    c.q = take(arena, readers * c.ld_k);
    c.k_factors = take(arena, CHUNK);
    c.q_factors = take(arena, readers);
    c.k_t = take(arena, h->K * CHUNK);
    c.gram = take(arena, CHUNK * CHUNK);
    c.qk = take(arena, readers * CHUNK);
    c.d = take(arena, CHUNK * c.ld_v);
    c.w = take(arena, CHUNK * c.ld_v);
    c.scaled = take(arena, CHUNK * c.ld_v);
    c.fade = take(arena, (CHUNK + 1) * (CHUNK + 1));
    return c;
}

void load_normed_chunk(const ValueHead *h, NormedChunk *c, size_t start, bool with_queries)
{
    c->start = start;
    c->n = fwm_min(c->length, h->T - start);
    for (size_t t = 0; t < c->n; t++)
        load_numbers(h->v, start + t, 0, h->V, c->ld_v, c->d + t * c->ld_v);
    load_keys(h, start, c->n, c->ld_k, c->k, c->k_factors);
    if (with_queries)
        load_queries(h, start, c->n, c->ld_k, c->q, h->R * c->ld_k, c->ld_k, c->q_factors);
}

/* s of token t, from |S~|^2 and the largest |S~|^2 that is not clamped. s = 1 means that the token is not clamped. */
static real clamp(const ValueHead *h, size_t t, double written, double largest)
{
    const bool first_is_free = !h->call->clamp_first && !h->initial_state,
               unclamped = written <= largest || (t == 0 && first_is_free);
    const real s = (real)sqrt(written);
    return unclamped ? 1 : s == 1 ? (real)(1 + EPSILON) : s;
}

/* A token of the plain recurrence. */
static void write_token(const ValueHead *h, const NormedChunk *c, const real *S0, real *S1, real *r, real *s)
{
    const size_t ld = c->ld_v;
    const real beta = number_of(h->beta, c->start, 0);
    double norm2 = 0;
    memset(r, 0, ld * sizeof(real));
    for (size_t i = 0; i < h->K; i++)
        add_scaled(ld, c->k[i], S0 + i * ld, r);
    add_scaled(ld, -1, r, c->d);
    for (size_t i = 0; i < h->K; i++) {
        const real *before = S0 + i * ld, write = beta * c->k[i];
        real *after = S1 + i * ld;
        vec squares = {0};
        for (size_t j = 0; j < ld; j += FWM_LANES) {
            const vec x = vec_load(before + j) + write * vec_load(c->d + j);
            squares += x * x;
            vec_store(after + j, x);
        }
        norm2 += vec_sum(squares);
    }
    *s = clamp(h, c->start, norm2, 1 + ROUNDING);
    for (size_t i = 0; *s != 1 && i < h->K * ld; i += FWM_LANES)
        vec_store(S1 + i, vec_load(S1 + i) / *s);
}

static void read_token(const ValueHead *h, const NormedChunk *c, const real *S, real *o)
{
    for (size_t q = 0; q < h->R; q++) {
        memset(o, 0, c->ld_v * sizeof(real));
        for (size_t i = 0; i < h->K; i++)
            add_scaled(c->ld_v, c->q[q * c->ld_k + i], S + i * c->ld_v, o);
        store_numbers(o, h->V, h->o, c->start, q * h->V);
    }
}

/* Columns of k_t after the chunk's last token keep old numbers, and so do the products' columns, which are never
 * read. */
void multiply_keys(const ValueHead *h, const NormedChunk *c)
{
    transpose(c->n, h->K, c->k, c->ld_k, c->k_t, CHUNK);
    gemm(c->n, CHUNK, h->K, rows_of(c->k, c->ld_k), c->k_t, CHUNK, 0, NULL, c->gram, CHUNK);
}

void begin_fading(const NormedChunk *c)
{
    c->fade[0] = 1;
}

void fade_states(const NormedChunk *c, size_t t, real s)
{
    const real *before = c->fade + t * (CHUNK + 1);
    real *after = c->fade + (t + 1) * (CHUNK + 1);
    for (size_t from = 0; from <= t; from++)
        after[from] = before[from] / s;
    after[t + 1] = 1;
}

/* State n of the chunk, whose first n writes are in w. */
static void state_after(const ValueHead *h, const NormedChunk *c, size_t n, const real *S0, real *S)
{
    for (size_t j = 0; j < n; j++)
        scale(c->ld_v, faded(c, j + 1, n), c->w + j * c->ld_v, c->scaled + j * c->ld_v);
    gemm(h->K, c->ld_v, n, transposed(c->k, c->ld_k), c->scaled, c->ld_v, faded(c, 0, n), S0, S, c->ld_v);
}

/* |S~|^2 of token t, summed from the state; S is scratch. */
static double measure(const ValueHead *h, const NormedChunk *c, size_t t, real beta, const real *S0, real *S)
{
    state_after(h, c, t, S0, S);
    for (size_t i = 0; i < h->K; i++)
        add_scaled(c->ld_v, beta * c->k[t * c->ld_k + i], c->d + t * c->ld_v, S + i * c->ld_v);
    return inner(h->K, c->ld_v, S, S);
}

static void write_chunk(const ValueHead *h, const NormedChunk *c, const real *S0, real *S1, real *r, real *s)
{
    const size_t ld = c->ld_v;
    real weights[CHUNK];
    double norm2 = inner(h->K, ld, S0, S0);
    if (fabs(norm2 - 1) <= ROUNDING)
        norm2 = 1;
    multiply_keys(h, c);
    begin_fading(c);
    gemm(c->n, ld, h->K, rows_of(c->k, c->ld_k), S0, ld, 0, NULL, r, ld);
    for (size_t t = 0; t < c->n; t++, r += ld) {
        const real beta = number_of(h->beta, c->start + t, 0);
        real *d = c->d + t * ld;
        for (size_t j = 0; j < t; j++)
            weights[j] = faded(c, j + 1, t) * c->gram[t * CHUNK + j];
        combine(ld, faded(c, 0, t), t, weights, c->w, r);
        add_scaled(ld, -1, r, d);
        const double b = beta, kk = c->gram[t * CHUNK + t];
        const double written = norm2 > LARGEST_CARRIED ? measure(h, c, t, beta, S0, S1)
                                                       : norm2 + 2 * b * dot(ld, d, r) + b * b * dot(ld, d, d) * kk;
        s[t] = clamp(h, c->start + t, written, 1);
        norm2 = s[t] == 1 ? written : 1;
        scale(ld, beta / s[t], d, c->w + t * ld);
        fade_states(c, t, s[t]);
    }
    state_after(h, c, c->n, S0, S1);
    if (s[c->n - 1] != 1)
        scale(h->K * ld, (real)(1 / sqrt(inner(h->K, ld, S1, S1))), S1, S1);
}

/* o (C R x ld_v) of a chunk that has been written. */
static void read_chunk(const ValueHead *h, const NormedChunk *c, const real *S0, real *o)
{
    const size_t ld = c->ld_v, R = h->R;
    real weights[CHUNK];
    gemm(c->n * R, CHUNK, h->K, rows_of(c->q, c->ld_k), c->k_t, CHUNK, 0, NULL, c->qk, CHUNK);
    gemm(c->n * R, ld, h->K, rows_of(c->q, c->ld_k), S0, ld, 0, NULL, o, ld);
    for (size_t i = 0; i < c->n * R; i++) {
        const size_t t = i / R;
        for (size_t j = 0; j <= t; j++)
            weights[j] = faded(c, j + 1, t + 1) * c->qk[i * CHUNK + j];
        combine(ld, faded(c, 0, t + 1), t + 1, weights, c->w, o + i * ld);
        store_numbers(o + i * ld, h->V, h->o, c->start + t, i % R * h->V);
    }
}

void write_normed_chunk(const ValueHead *h, const NormedChunk *c, const real *S0, real *S1, real *r, real *s)
{
    (c->length == 1 ? write_token : write_chunk)(h, c, S0, S1, r, s);
}

typedef struct {
    NormedChunk chunk;
    real *states[2]; /* K x ld_v */
    real *r, *o;     /* C x ld_v, C R x ld_v */
    real s[CHUNK];
} NormedForwardScratch;

static NormedForwardScratch take_scratch(const ValueHead *h, Arena *arena)
{
    NormedForwardScratch w = {.chunk = take_normed_chunk(h, arena)};
    const size_t ld = w.chunk.ld_v;
    for (size_t i = 0; i < 2; i++)
        w.states[i] = take(arena, h->K * ld);
    w.r = take(arena, CHUNK * ld);
    w.o = take(arena, CHUNK * h->R * ld);
    return w;
}

/* Where rows need no padding, the plain recurrence works in place, in the final state: decoding copies nothing. */
static void forward_head(const ValueHead *h, NormedForwardScratch *w)
{
    const size_t ld = w->chunk.ld_v, length = w->chunk.length;
    const bool in_place = length == 1 && h->final_state && h->V == ld && !h->call->state_v_first;
    real *S = in_place ? h->final_state : w->states[0], *S1 = length == 1 ? S : w->states[1];
    if (!in_place || S != h->initial_state)
        load_columns(h, 0, h->V, ld, h->initial_state, S);
    for (size_t start = 0; start < h->T; start += length) {
        load_normed_chunk(h, &w->chunk, start, true);
        write_normed_chunk(h, &w->chunk, S, S1, w->r, w->s);
        (length == 1 ? read_token : read_chunk)(h, &w->chunk, S, w->o);
        real *const before = S, *const kept = kept_state(h, start + w->chunk.n);
        S = S1;
        S1 = before;
        if (kept)
            store_columns(h, 0, h->V, ld, S, kept);
    }
    if (h->final_state && !in_place)
        store_columns(h, 0, h->V, ld, S, h->final_state);
}

static size_t bytes_of_thread(const FwmRuleCall *call)
{
    const ValueHead h = longest_head(call);
    Arena arena = {0};
    take_scratch(&h, &arena);
    return arena.next;
}

static size_t forward_scratch(const void *rule_call, int threads)
{
    const FwmRuleCall *call = rule_call;
    return bytes_of_thread(call) * (size_t)threads;
}

static void forward_task(void *context, size_t index, int thread)
{
    const NormedWork *work = context;
    const ValueHead h = head_of(work->call, index / work->call->HV, index % work->call->HV);
    Arena arena = arena_of_thread(work->scratch, thread, work->bytes);
    NormedForwardScratch w = take_scratch(&h, &arena);
    forward_head(&h, &w);
}

static void forward(const void *rule_call, int threads, void *scratch)
{
    const FwmRuleCall *call = rule_call;
    NormedWork work = {call, scratch, bytes_of_thread(call)};
    fwm_parallel_for(threads, call->n_sequences * call->HV, forward_task, &work);
}

const Rule fast_weight_memory_rule = {
    .info = {.name = "fwm",
             .function = "fast_weight_memory",
             .strength = FWM_BETA,
             .has_qk_norm = true,
             .clamps = true,
             .summary = "delta rule with the state kept at norm 1"},
    .forward = {forward_scratch, forward},
    .backward = {fast_weight_memory_backward_scratch, fast_weight_memory_backward},
};
