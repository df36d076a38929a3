/* The plain recurrence, backward. Forward, at token t, with S the state before it:
 *
 *     S' = diag(a) S,   n = u - S'^T e,   S_t = S' + k n^T,   o = S_t^T q / den,   den = z_t . q + eps or 1
 *
 * Saved: only the inputs. States are recomputed: a first pass leaves a checkpoint every L tokens (L about sqrt T);
 * then, segment by segment from the last, come those of the segment's tokens. Backward, where dS is at first the
 * gradient of S_t from all later tokens:
 *
 *     do <- do / den;   dden = -(do . S_t^T q) / den;   dq = S_t do + dden z_t,   dz += dden q,   dk = dz
 *     dS += q do^T;     dn = dS^T k;   dk += dS n;   du = dn;   de = -S' dn
 *     dS' = dS - e dn^T;   dg_i = <dS'_i, S'_i>;   dS = diag(a) dS'
 *
 * As in the forward a has two parts, and the state and dS are rounded once a token: diag(a) dS' is computed together
 * with the addition of q do^T at the token before.
 *
 * Derived in docs/mathematics/rules.md. */
#include "kernels/rules/family/recurrent.h"

#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/rules/tokens.h"
#include "runtime/threads.h"

typedef struct {
    const FwmRuleCall *call;
    size_t ld, longest, L; /* longest sequence; tokens of a segment */
    char *scratch;
    size_t stride;
} RecurrentBackward;

typedef struct {
    real *k, *e, *q, *dk, *de, *dq; /* ld; R x ld for q, dq */
    real *k_factor, *q_factors;     /* 1, R: what key and queries have been multiplied by */
    real *a, *rest;                 /* ld: exp(g), and its two parts */
    real *rest_later;               /* of the token after: still to be applied to dS */
    lane_number *one_more, *one_more_later;
    real *dz;                   /* ld */
    real *u, *n, *dn, *o;       /* V */
    real *dS;                   /* K x V */
    real *checkpoints, *states; /* (K x V + ld) each: state and sum of keys before a segment, before a token */
} RecurrentBackwardScratch;

static RecurrentBackwardScratch take_scratch(const RecurrentBackward *f, Arena *arena)
{
    const size_t K = f->call->K, V = f->call->V, R = queries_per_state(f->call), row = f->ld * sizeof(real),
                 column = V * sizeof(real);
    const size_t state = (K * V + f->ld) * sizeof(real);
    RecurrentBackwardScratch w;
    real **const rows[] = {&w.k, &w.e, &w.a, &w.rest, &w.rest_later, &w.dk, &w.de, &w.dz};
    real **const columns[] = {&w.u, &w.n, &w.dn, &w.o};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        *rows[i] = take_bytes(arena, row);
    for (size_t i = 0; i < sizeof columns / sizeof columns[0]; i++)
        *columns[i] = take_bytes(arena, column);
    w.one_more = take_bytes(arena, f->ld * sizeof(lane_number));
    w.one_more_later = take_bytes(arena, f->ld * sizeof(lane_number));
    w.q = take_bytes(arena, R * row);
    w.k_factor = take_bytes(arena, sizeof(real));
    w.q_factors = take_bytes(arena, R * sizeof(real));
    w.dq = take_bytes(arena, R * row);
    w.dS = take_bytes(arena, state);
    w.checkpoints = take_bytes(arena, (fwm_tiles(f->longest, f->L) + 1) * state);
    w.states = take_bytes(arena, (f->L + 1) * state);
    return w;
}

static void load_rows(const ValueHead *h, const RecurrentBackward *f, size_t t, const RecurrentBackwardScratch *w)
{
    load_keys(h, t, 1, f->ld, w->k, w->k_factor);
    load_erase_keys(h, t, 1, f->ld, w->k, w->e);
    load_queries(h, t, 1, f->ld, w->q, 0, f->ld, w->q_factors);
    load_value(h, t, 0, h->V, w->u);
    if (f->call->gate != FWM_NO_GATE)
        load_decays(h, t, f->ld, w->a, w->rest, w->one_more);
}

/* out = S'^T x, S' = diag(a) S */
static void read_decayed(const ValueHead *h, const real *a, const real *S, const real *x, real *restrict out)
{
    const size_t V = h->V;
    memset(out, 0, V * sizeof(real));
    for (size_t i = 0; i < h->K; i++)
        for (size_t j = 0; j < V; j++)
            out[j] += x[i] * (a[i] * S[i * V + j]);
}

/* n, and S -> next, the state after token t; the sum of keys is stored after the state. */
static void write_token(const ValueHead *h, const RecurrentBackward *f, size_t t, const RecurrentBackwardScratch *w,
                        const real *S, real *restrict next)
{
    const size_t K = h->K, V = h->V;
    load_rows(h, f, t, w);
    read_decayed(h, w->a, S, w->e, w->n);
    for (size_t j = 0; j < V; j++)
        w->n[j] = w->u[j] - w->n[j];
    for (size_t i = 0; i < K; i++)
        for (size_t j = 0; j < V; j++)
            next[i * V + j] = (w->one_more[i] ? S[i * V + j] : 0) + (w->rest[i] * S[i * V + j] + w->k[i] * w->n[j]);
    for (size_t i = 0; i < f->ld; i++)
        next[K * V + i] = S[K * V + i] + w->k[i];
}

/* Query r: dq, and its share of dS and dz. The first also applies the gate of the token after t to dS. */
static void read_backward(const ValueHead *h, const RecurrentBackward *f, size_t t, size_t r,
                          const RecurrentBackwardScratch *w, const real *S_t)
{
    const size_t K = h->K, V = h->V;
    const real *z = S_t + K * V, *q = w->q + r * f->ld, *dout = token(h->dout, t) + r * V;
    real *dq = w->dq + r * f->ld, den = 1, dden = 0;
    if (f->call->normalize) {
        den = (real)f->call->eps;
        for (size_t i = 0; i < K; i++)
            den += z[i] * q[i];
    }
    for (size_t i = 0; i < K; i++) {
        const bool one_more = r > 0 || w->one_more_later[i];
        const real rest = r == 0 ? w->rest_later[i] : 0;
        real along = 0;
        for (size_t j = 0; j < V; j++) {
            const real dS = w->dS[i * V + j];
            along += S_t[i * V + j] * (dout[j] / den);
            w->dS[i * V + j] = (one_more ? dS : 0) + (rest * dS + q[i] * (dout[j] / den));
        }
        dq[i] = along;
        dden -= along * q[i] / den;
    }
    for (size_t i = 0; f->call->normalize && i < K; i++) {
        dq[i] += dden * z[i];
        w->dz[i] += dden * q[i];
    }
}

static void backward_token(const ValueHead *h, const RecurrentBackward *f, size_t t, const RecurrentBackwardScratch *w,
                           const real *S, real *S_t)
{
    const size_t K = h->K, V = h->V;
    real dg_sum = 0;
    write_token(h, f, t, w, S, S_t);
    for (size_t r = 0; r < h->R; r++)
        read_backward(h, f, t, r, w, S_t);
    memset(w->dn, 0, V * sizeof(real));
    for (size_t i = 0; i < K; i++) {
        real along = 0;
        for (size_t j = 0; j < V; j++) {
            w->dn[j] += w->dS[i * V + j] * w->k[i];
            along += w->dS[i * V + j] * w->n[j];
        }
        w->dk[i] = along + w->dz[i];
    }
    for (size_t i = 0; i < K; i++) {
        real de = 0, dg = 0;
        for (size_t j = 0; j < V; j++) {
            const real decayed = w->a[i] * S[i * V + j], d = w->dS[i * V + j] - w->e[i] * w->dn[j];
            de -= decayed * w->dn[j];
            dg += d * decayed;
            w->dS[i * V + j] = d;
        }
        w->de[i] = de;
        dg_sum += dg;
        if (f->call->gate == FWM_CHANNEL_GATE)
            token(h->dg, t)[i] = dg;
    }
    if (f->call->gate == FWM_SCALAR_GATE)
        *token(h->dg, t) = dg_sum;
    memcpy(w->one_more_later, w->one_more, f->ld * sizeof(lane_number));
    memcpy(w->rest_later, w->rest, f->ld * sizeof(real));
    real dbeta;
    store_values(h, t, 1, 0, V, V, w->dn, &dbeta);
    const LoadedRows k = {w->k, w->k_factor, f->ld, 0}, q = {w->q, w->q_factors, 0, f->ld};
    store_tokens(h, t, 1, f->ld, &k, &q, &dbeta, w->dk, w->de, w->dq);
}

static void backward_head(const ValueHead *h, const RecurrentBackward *f, const RecurrentBackwardScratch *w)
{
    const size_t K = h->K, V = h->V, L = f->L, state = K * V + f->ld, segments = fwm_tiles(h->T, L);
    memset(w->e, 0, f->ld * sizeof(real));
    memset(w->de, 0, f->ld * sizeof(real)); /* its padding is multiplied by that of keys */
    memset(w->rest, 0, f->ld * sizeof(real));
    memset(w->rest_later, 0, f->ld * sizeof(real));
    for (size_t i = 0; i < f->ld; i++)
        w->a[i] = 1;
    memset(w->one_more, -1, f->ld * sizeof(lane_number));
    memset(w->one_more_later, -1, f->ld * sizeof(lane_number));
    load_columns(h, 0, V, V, h->initial_state, w->checkpoints);
    load_row(K, f->ld, h->initial_sum, w->checkpoints + K * V);
    load_columns(h, 0, V, V, h->dfinal_state, w->dS);
    load_row(K, f->ld, h->dfinal_sum, w->dz);
    for (size_t t = 0; t + L < segments * L; t++) {
        const real *from = t % L ? w->states + t % L * state : w->checkpoints + t / L * state;
        write_token(h, f, t, w, from,
                    (t + 1) % L ? w->states + (t + 1) % L * state : w->checkpoints + (t + 1) / L * state);
    }
    for (size_t segment = segments; segment-- > 0;) {
        const size_t t0 = segment * L, n = fwm_min(L, h->T - t0);
        memcpy(w->states, w->checkpoints + segment * state, state * sizeof(real));
        for (size_t t = 0; t + 1 < n; t++)
            write_token(h, f, t0 + t, w, w->states + t * state, w->states + (t + 1) * state);
        for (size_t t = n; t-- > 0;)
            backward_token(h, f, t0 + t, w, w->states + t * state, w->states + (t + 1) * state);
    }
    for (size_t i = 0; h->dinitial_state && i < K; i++)
        for (size_t j = 0; j < V; j++)
            w->dS[i * V + j] = (w->one_more_later[i] ? w->dS[i * V + j] : 0) + w->rest_later[i] * w->dS[i * V + j];
    if (h->dinitial_state)
        store_columns(h, 0, V, V, w->dS, h->dinitial_state);
    if (h->dinitial_sum)
        accumulate(K, w->dz, h->first_of_key, h->dinitial_sum);
}

/* The value heads of a key head, one after the other: they add to its dk and dq in order. */
static void backward_key_head(const RecurrentBackward *f, size_t sequence, size_t key_head, void *scratch)
{
    const size_t group = f->call->HV / f->call->H, first = key_head * group;
    Arena arena = arena_at(scratch);
    const RecurrentBackwardScratch w = take_scratch(f, &arena);
    for (size_t hv = first; hv < first + group; hv++) {
        const ValueHead h = head_of(f->call, sequence, hv);
        backward_head(&h, f, &w);
    }
}

static void backward_task(void *context, size_t index, int thread)
{
    const RecurrentBackward *f = context;
    backward_key_head(f, index / f->call->H, index % f->call->H, f->scratch + (size_t)thread * f->stride);
}

static RecurrentBackward recurrence_of(const FwmRuleCall *call, size_t longest, void *scratch)
{
    RecurrentBackward f = {.call = call, .ld = fwm_padded(call->K), .longest = longest, .L = 1, .scratch = scratch};
    while (f.L * f.L < f.longest)
        f.L++;
    Arena arena = {0};
    take_scratch(&f, &arena);
    f.stride = arena.next;
    return f;
}

size_t recurrent_backward_scratch(const FwmRuleCall *call, int threads)
{
    return recurrence_of(call, longest_sequence(call), NULL).stride * (size_t)threads;
}

void recurrent_backward(const FwmRuleCall *call, int threads, void *scratch)
{
    RecurrentBackward f = recurrence_of(call, longest_sequence(call), scratch);
    fwm_parallel_for(threads, call->n_sequences * call->H, backward_task, &f);
}

size_t one_token_scratch(const FwmRuleCall *call)
{
    const size_t forward = recurrent_forward_scratch(call, 1), backward = recurrence_of(call, 1, NULL).stride;
    return forward > backward ? forward : backward;
}

void one_token_backward(const FwmRuleCall *call, size_t sequence, size_t key_head, void *scratch)
{
    const RecurrentBackward f = recurrence_of(call, 1, scratch);
    backward_key_head(&f, sequence, key_head, scratch);
}
