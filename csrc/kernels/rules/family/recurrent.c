/* The plain recurrence, forward: token by token,
 *
 *     S = diag(a) S,   n = u - S^T e,   S += k n^T,   o = S^T q,                  a = exp(g), q scaled
 *
 * computed as n = u - S^T (a e), o = S^T (a q) + (k . q) n, so that S is read once for both products and once for the
 * write. In the write a S is added up from two parts (exp_in_two), and the state is rounded once: the rounding of a
 * weak gate's a, or of a S, would have the same sign at all tokens.
 *
 * Derived in docs/mathematics/rules.md. */
#include "kernels/rules/family/recurrent.h"

#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/base/vector.h"
#include "kernels/rules/family/slab.h"
#include "kernels/rules/tokens.h"
#include "runtime/threads.h"

enum { SLAB_VECTORS = SLAB / FWM_LANES };

typedef struct {
    const FwmRuleCall *call;
    size_t ld;
    bool erases;
    char *scratch;
    size_t stride;
} RecurrentForward;

typedef struct {
    real *k, *e, *q; /* ld, ld, R x ld: of the token */
    real *a, *rest;  /* ld: exp(g), and its two parts */
    lane_number *one_more;
    real *z;          /* ld: the sum of keys */
    real *own;        /* R: k . q */
    real *reciprocal; /* R: of the denominators; 1 without normalize */
    real *u, *o;      /* W */
    real *slab;       /* K x W: a copy of a slab, of the tail of V or of a state of zeros */
    real *state;      /* K x V, if the caller wants no final state */
} RecurrentForwardScratch;

bool recurrent_serves(const FwmRuleCall *call)
{
    return call->method == FWM_RECURRENT || longest_sequence(call) <= 1;
}

static RecurrentForwardScratch take_scratch(const RecurrentForward *f, Arena *arena)
{
    const FwmRuleCall *call = f->call;
    const size_t row = f->ld * sizeof(real);
    return (RecurrentForwardScratch){
        .k = take_bytes(arena, row),
        .e = take_bytes(arena, row),
        .q = take_bytes(arena, row * queries_per_state(call)),
        .a = take_bytes(arena, row),
        .rest = take_bytes(arena, row),
        .one_more = take_bytes(arena, f->ld * sizeof(lane_number)),
        .z = take_bytes(arena, row),
        .own = take_bytes(arena, queries_per_state(call) * sizeof(real)),
        .reciprocal = take_bytes(arena, queries_per_state(call) * sizeof(real)),
        .u = take_bytes(arena, SLAB * sizeof(real)),
        .o = take_bytes(arena, SLAB * sizeof(real)),
        .slab = take_bytes(arena, call->K * SLAB * sizeof(real)),
        .state = take_bytes(arena, call->final_state ? 0 : call->K * call->V * sizeof(real)),
    };
}

/* er = S^T e and o = S^T q on W columns; rows of S lie ld apart. */
static inline void read_columns(size_t K, const real *S, size_t ld, const real *e, const real *q, vec *er, vec *o)
{
    vec along_e[SLAB_VECTORS] = {{0}}, along_q[SLAB_VECTORS] = {{0}}; /* in registers */
    for (size_t i = 0; i < K; i++, S += ld)
        for (size_t v = 0; v < SLAB_VECTORS; v++) {
            const vec s = vec_in_register(vec_load(S + v * FWM_LANES));
            along_e[v] += e[i] * s;
            along_q[v] += q[i] * s;
        }
    for (size_t v = 0; v < SLAB_VECTORS; v++) {
        er[v] = along_e[v];
        o[v] = along_q[v];
    }
}

/* out = diag(a) S + k n^T; the parts of a are one number for each row, or the same for all rows. */
ALWAYS_INLINE void write_columns(size_t K, const real *S, size_t ld, const real *rest, const lane_number *one_more,
                                 bool same, const real *k, const vec *n, real *out, size_t ld_out)
{
    const real first = rest[0];
    const lane_number first_mask = one_more[0];
    vec written[SLAB_VECTORS]; /* a copy that no store can change: it stays in registers */
    for (size_t v = 0; v < SLAB_VECTORS; v++)
        written[v] = n[v];
    for (size_t i = 0; i < K; i++, S += ld, out += ld_out) {
        const real rest_i = same ? first : rest[i], k_i = k[i];
        const lane_number mask = same ? first_mask : one_more[i];
        for (size_t v = 0; v < SLAB_VECTORS; v++) {
            const vec s = vec_in_register(vec_load(S + v * FWM_LANES));
            vec_store(out + v * FWM_LANES, vec_masked(s, mask) + (rest_i * s + k_i * written[v]));
        }
    }
}

/* One token on W columns: S -> out, which may be the same array. What the queries read is stored in o, n columns each,
 * rows V numbers apart. */
static void step(const ValueHead *h, const RecurrentForwardScratch *w, size_t ld, const real *S, size_t ld_S, real *out,
                 size_t ld_out, size_t n, real *o)
{
    const size_t R = h->R;
    vec er[SLAB_VECTORS], read[SLAB_VECTORS], written[SLAB_VECTORS];
    read_columns(h->K, S, ld_S, w->e, w->q, er, read);
    for (size_t v = 0; v < SLAB_VECTORS; v++)
        written[v] = vec_load(w->u + v * FWM_LANES) - er[v];
    for (size_t r = 0; r < R; r++) {
        if (r > 0)
            read_columns(h->K, S, ld_S, w->e, w->q + r * ld, er, read);
        for (size_t v = 0; v < SLAB_VECTORS; v++)
            vec_store(w->o + v * FWM_LANES, w->reciprocal[r] * (read[v] + w->own[r] * written[v]));
        memcpy(o + r * h->V, w->o, n * sizeof(real));
    }
    if (h->call->gate == FWM_CHANNEL_GATE)
        write_columns(h->K, S, ld_S, w->rest, w->one_more, false, w->k, written, out, ld_out);
    else
        write_columns(h->K, S, ld_S, w->rest, w->one_more, true, w->k, written, out, ld_out);
}

/* The token's rows; without a gate a is 1, without erasing e is 0. */
static void load_rows(const ValueHead *h, const RecurrentForward *f, size_t t, const RecurrentForwardScratch *w)
{
    load_keys(h, t, 1, f->ld, w->k);
    load_erase_keys(h, t, 1, f->ld, w->k, w->e);
    load_queries(h, t, 1, f->ld, w->q, 0, f->ld);
    if (f->call->gate != FWM_NO_GATE)
        load_decays(h, t, f->ld, w->a, w->rest, w->one_more);
}

/* e and q read the state before the gate, so the gate is applied to them: they become a e and a q. */
static void decay_readers(const ValueHead *h, const RecurrentForward *f, const RecurrentForwardScratch *w)
{
    for (size_t i = 0; i < f->ld; i++) {
        w->e[i] = f->erases ? w->a[i] * w->e[i] : 0;
        for (size_t r = 0; r < h->R; r++)
            w->q[r * f->ld + i] *= w->a[i];
    }
}

static void begin_head(const ValueHead *h, const RecurrentForward *f, const RecurrentForwardScratch *w)
{
    memset(w->e, 0, f->ld * sizeof(real));
    memset(w->rest, 0, f->ld * sizeof(real));
    memset(w->one_more, -1, f->ld * sizeof(lane_number));
    load_row(h->K, f->ld, h->initial_sum, w->z);
}

/* Token t on all columns: state before -> out. */
static void step_token(const ValueHead *h, const RecurrentForward *f, size_t t, const RecurrentForwardScratch *w,
                       const real *before, real *out)
{
    const size_t K = h->K, V = h->V;
    load_rows(h, f, t, w);
    if (f->call->normalize)
        add(f->ld, w->k, w->z);
    for (size_t r = 0; r < h->R; r++) {
        w->own[r] = dot(f->ld, w->k, w->q + r * f->ld);
        w->reciprocal[r] = f->call->normalize ? 1 / (dot(f->ld, w->q + r * f->ld, w->z) + (real)f->call->eps) : 1;
    }
    if (f->call->gate != FWM_NO_GATE)
        decay_readers(h, f, w);
    for (size_t p = 0; p < slabs_of(V); p++) {
        const Slab slab = slab_of(V, p);
        real *o = token(h->o, t) + slab.j0;
        load_value(h, t, slab.j0, slab.n, w->u);
        memset(w->u + slab.n, 0, (SLAB - slab.n) * sizeof(real));
        if (slab.n == SLAB && before) {
            step(h, w, f->ld, before + slab.j0, V, out + slab.j0, V, SLAB, o);
            continue;
        }
        load_slab(&slab, K, V, before, w->slab);
        step(h, w, f->ld, w->slab, SLAB, w->slab, SLAB, slab.n, o);
        store_slab(&slab, K, V, w->slab, out);
    }
}

static void forward_head(const RecurrentForward *f, size_t sequence, size_t hv, void *scratch)
{
    const ValueHead h = head_of(f->call, sequence, hv);
    Arena arena = arena_at(scratch);
    const RecurrentForwardScratch w = take_scratch(f, &arena);
    real *out = h.final_state ? h.final_state : w.state;
    begin_head(&h, f, &w);
    for (size_t t = 0; t < h.T; t++)
        step_token(&h, f, t, &w, t > 0 ? out : h.initial_state, out);
    if (h.T == 0 && h.final_state && h.initial_state)
        memmove(h.final_state, h.initial_state, h.K * h.V * sizeof(real));
    else if (h.T == 0 && h.final_state)
        memset(h.final_state, 0, h.K * h.V * sizeof(real));
}

static void forward_task(void *context, size_t index, int thread)
{
    const RecurrentForward *f = context;
    forward_head(f, index / f->call->HV, index % f->call->HV, f->scratch + (size_t)thread * f->stride);
}

static RecurrentForward recurrence_of(const FwmRuleCall *call, void *scratch)
{
    RecurrentForward f = {.call = call, .ld = fwm_padded(call->K), .erases = rule_erases(call), .scratch = scratch};
    Arena arena = {0};
    take_scratch(&f, &arena);
    f.stride = arena.next;
    return f;
}

size_t recurrent_forward_scratch(const FwmRuleCall *call, int threads)
{
    return recurrence_of(call, NULL).stride * (size_t)threads;
}

void recurrent_forward(const FwmRuleCall *call, int threads, void *scratch)
{
    RecurrentForward f = recurrence_of(call, scratch);
    fwm_parallel_for(threads, call->n_sequences * call->HV, forward_task, &f);
}

void one_token_forward(const FwmRuleCall *call, size_t sequence, size_t hv, void *scratch)
{
    const RecurrentForward f = recurrence_of(call, scratch);
    forward_head(&f, sequence, hv, scratch);
}
