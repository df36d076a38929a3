/* The plain recurrence, forward: token by token,
 *
 *     S = diag(a) S,   n = u - S^T e,   S += k n^T,   o = S^T q,                  a = exp(g), q scaled
 *
 * computed as n = u - S^T (a e), o = S^T (a q) + (k . q) n, so that S is read once for both products and once for the
 * write. In the write a S is added up from two parts (exp_in_two), and the state is rounded once: the rounding of a
 * weak gate's a, or of a S, would have the same sign at all tokens.
 *
 * A state V x K (state_v_first) is worked on as it lies: its rows are the columns of the equations.
 *
 * Derived in docs/mathematics/rules.md. */
#include "kernels/rules/family/recurrent.h"

#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/base/vector.h"
#include "kernels/rules/family/slab.h"
#include "kernels/rules/tokens.h"
#include "runtime/threads.h"

enum {
    SLAB_VECTORS = SLAB / FWM_LANES,
    ROWS = 4 /* of a state V x K, at once */
};

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
    real *read;       /* R x V: what the queries read, where o is stored in 16 bits */
    real *slab;       /* K x W: a copy of a slab, of the tail of V or of a state of zeros */
    real *rows;       /* ROWS x ld: copies of rows of a state V x K, where these need padding */
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
        .read = take(arena, call->q.numbers == FWM_REAL ? 0 : queries_per_state(call) * call->V),
        .slab = take_bytes(arena, call->K * SLAB * sizeof(real)),
        .rows = take_bytes(arena, ROWS * row),
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

/* er = S e and o = S q on rows of a state V x K, which are ld numbers each. */
ALWAYS_INLINE void read_rows(size_t rows, size_t ld, const real *S, const real *e, const real *q, real *er, real *o)
{
    vec along_e[ROWS] = {{0}}, along_q[ROWS] = {{0}};
    for (size_t i = 0; i < ld; i += FWM_LANES) {
        const vec e_i = vec_load(e + i), q_i = vec_load(q + i);
        for (size_t j = 0; j < rows; j++) {
            const vec s = vec_in_register(vec_load(S + j * ld + i));
            along_e[j] += e_i * s;
            along_q[j] += q_i * s;
        }
    }
    for (size_t j = 0; j < rows; j++) {
        er[j] = vec_sum(along_e[j]);
        o[j] = vec_sum(along_q[j]);
    }
}

/* out = S diag(a) + n k^T on such rows. */
ALWAYS_INLINE void write_rows(size_t rows, size_t ld, const real *S, const RecurrentForwardScratch *w, const real *n,
                              real *out)
{
    for (size_t i = 0; i < ld; i += FWM_LANES) {
        const vec rest = vec_load(w->rest + i), k = vec_load(w->k + i);
        const vec_mask one_more = (vec_mask)vec_load((const real *)(w->one_more + i));
        for (size_t j = 0; j < rows; j++) {
            const vec s = vec_in_register(vec_load(S + j * ld + i));
            vec_store(out + j * ld + i, (vec)((vec_mask)s & one_more) + (rest * s + n[j] * k));
        }
    }
}

/* One token on such rows, of which u has the written values and o gets what the queries read: step, transposed. */
ALWAYS_INLINE void step_rows(size_t rows, const ValueHead *h, const RecurrentForwardScratch *w, size_t ld,
                             const real *S, const real *u, real *out, real *o)
{
    real er[ROWS], read[ROWS], n[ROWS];
    read_rows(rows, ld, S, w->e, w->q, er, read);
    for (size_t j = 0; j < rows; j++)
        n[j] = u[j] - er[j];
    for (size_t r = 0; r < h->R; r++) {
        if (r > 0)
            read_rows(rows, ld, S, w->e, w->q + r * ld, er, read);
        for (size_t j = 0; j < rows; j++)
            o[r * h->V + j] = w->reciprocal[r] * (read[j] + w->own[r] * n[j]);
    }
    write_rows(rows, ld, S, w, n, out);
}

/* Token t on all rows of a state V x K: before (NULL: zeros) -> out. */
static void step_state_v_first(const ValueHead *h, size_t t, size_t ld, const RecurrentForwardScratch *w,
                               const real *before, real *out)
{
    const bool as_it_lies = before && h->K == ld;
    for (size_t j = 0; j < h->V; j += ROWS) {
        const size_t rows = fwm_min(ROWS, h->V - j);
        const real *S = as_it_lies ? before + j * ld : w->rows;
        real *S1 = as_it_lies ? out + j * ld : w->rows, *o = token(h->o, t) + j;
        for (size_t i = 0; i < rows && !as_it_lies; i++)
            load_row(h->K, ld, before ? before + (j + i) * h->K : NULL, w->rows + i * ld);
        load_value(h, t, j, rows, w->u);
        if (rows == ROWS)
            step_rows(ROWS, h, w, ld, S, w->u, S1, o);
        else
            step_rows(rows, h, w, ld, S, w->u, S1, o);
        if (!as_it_lies)
            unpad_rows(rows, w->rows, ld, out + j * h->K, h->K);
    }
}

/* Token t on all columns of a state K x V: before (NULL: zeros) -> out. */
static void step_state(const ValueHead *h, size_t t, size_t ld, const RecurrentForwardScratch *w, const real *before,
                       real *out)
{
    const size_t V = h->V;
    for (size_t p = 0; p < slabs_of(V); p++) {
        const Slab slab = slab_of(V, p);
        real *o = token(h->o, t) + slab.j0;
        load_value(h, t, slab.j0, slab.n, w->u);
        memset(w->u + slab.n, 0, (SLAB - slab.n) * sizeof(real));
        if (slab.n == SLAB && before) {
            step(h, w, ld, before + slab.j0, V, out + slab.j0, V, SLAB, o);
            continue;
        }
        load_slab(h, &slab, before, w->slab);
        step(h, w, ld, w->slab, SLAB, w->slab, SLAB, slab.n, o);
        store_slab(h, &slab, w->slab, out);
    }
}

/* The token's rows; without a gate a is 1, without erasing e is 0. */
static void load_rows(const ValueHead *h, const RecurrentForward *f, size_t t, const RecurrentForwardScratch *w)
{
    load_keys(h, t, 1, f->ld, w->k, NULL);
    load_erase_keys(h, t, 1, f->ld, w->k, w->e);
    load_queries(h, t, 1, f->ld, w->q, 0, f->ld, NULL);
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

/* Token t: state before -> out. */
static void step_token(const ValueHead *h, const RecurrentForward *f, size_t t, const RecurrentForwardScratch *w,
                       const real *before, real *out)
{
    load_rows(h, f, t, w);
    if (f->call->normalize)
        add(f->ld, w->k, w->z);
    for (size_t r = 0; r < h->R; r++) {
        w->own[r] = dot(f->ld, w->k, w->q + r * f->ld);
        w->reciprocal[r] = f->call->normalize ? 1 / (dot(f->ld, w->q + r * f->ld, w->z) + (real)f->call->eps) : 1;
    }
    if (f->call->gate != FWM_NO_GATE)
        decay_readers(h, f, w);
    (f->call->state_v_first ? step_state_v_first : step_state)(h, t, f->ld, w, before, out);
}

/* Keeps the state after so many tokens, where that is asked for. */
static void keep_state(const ValueHead *h, size_t tokens, const real *state, const real *z)
{
    real *kept = kept_state(h, tokens), *sum = kept_sum(h, tokens);
    if (kept)
        memcpy(kept, state, h->K * h->V * sizeof(real));
    if (sum)
        copy(h->K, z, sum);
}

static void forward_head(const RecurrentForward *f, size_t sequence, size_t hv, void *scratch)
{
    ValueHead h = head_of(f->call, sequence, hv);
    const Tokens o = h.o;
    Arena arena = arena_at(scratch);
    const RecurrentForwardScratch w = take_scratch(f, &arena);
    if (o.numbers != FWM_REAL)
        h.o = (Tokens){w.read, 0, FWM_REAL};
    real *out = h.final_state ? h.final_state : w.state;
    begin_head(&h, f, &w);
    for (size_t t = 0; t < h.T; t++) {
        step_token(&h, f, t, &w, t > 0 ? out : h.initial_state, out);
        if (o.numbers != FWM_REAL)
            store_numbers(w.read, h.R * h.V, o, t, 0);
        keep_state(&h, t + 1, out, w.z);
    }
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
