/* The family, forward. A task is the value heads of a key head. They share keys, and their values lie side by side: so
 * all of them go over a span of tokens before the first goes over the next span. For each head the task prepares the
 * span, and goes slab after slab over its quads.
 *
 * See docs/mathematics/rules.md. */
#include "kernels/rules/family/family.h"

#include <string.h>

#include "kernels/rules/family/normalised_delta.h"
#include "kernels/rules/family/recurrent.h"
#include "kernels/rules/family/slab.h"
#include "kernels/rules/family/slab_rounded.h"
#include "runtime/threads.h"

enum { MOST_HEADS = 8 }; /* of a task: their states fit the second-level cache */

enum { CHUNKS = SPAN / CHUNK }; /* of a span */

/* How tokens are moved, chosen by the bytes of all values of a call. Times over those of rows that are gathered and
 * prefetched, with two threads of a Zen 4:
 *
 *     values                   1 MB   2 MB   2 MB   4 MB   8 MB   8 MB
 *     K = V                      32     32     64     64    128     32
 *     in place                 0.87          0.92   1.12
 *     in place, prefetched     0.91   0.92   0.92   0.93   0.99   1.2
 *     gathered                 0.98          1.01   1.05   1.02   1.1 */
#define MOST_IN_PLACE ((size_t)4 << 20)
#define MOST_NOT_PREFETCHED ((size_t)1 << 20)

typedef struct {
    Span span;            /* of a rule that erases */
    Chunk chunks[CHUNKS]; /* of another */
    real *states;         /* heads x slabs x ld x W */
    uint16_t *rounded;    /* the same, as slab_rounded.h has it, of a shape that rounds */
    real *sums;           /* heads x ld: of keys, with normalize */
    real *folded;         /* ld x W: a state on the way */
    real *u, *o;          /* SPAN x ld_V, R SPAN x ld_V: of the span */
} FamilyForwardScratch;

typedef struct {
    const FwmRuleCall *call;
    FamilyShape shape;
    size_t slabs, groups; /* of a head */
    size_t heads;         /* of a task */
    size_t value_bytes;   /* of the call */
    size_t ld_V;          /* V, padded */
    char *scratch;
    size_t stride;
} FamilyForward;

static FamilyForwardScratch take_scratch(const FamilyForward *f, Arena *arena)
{
    FamilyForwardScratch w;
    if (f->shape.erases)
        w.span = take_span(&f->shape, arena);
    for (size_t i = 0; i < CHUNKS && !f->shape.erases; i++)
        w.chunks[i] = take_chunk(&f->shape, arena);
    w.states = take(arena, f->heads * f->slabs * f->shape.ld * SLAB);
    w.rounded = take_bytes(arena, f->shape.rounds ? f->heads * f->slabs * f->shape.ld * SLAB * sizeof(uint16_t) : 0);
    w.sums = take(arena, f->heads * f->shape.ld);
    w.folded = take(arena, f->call->kept_states ? f->shape.ld * SLAB : 0);
    w.u = take(arena, SPAN * f->ld_V);
    w.o = take(arena, queries_per_state(f->call) * SPAN * f->ld_V);
    return w;
}

static real *slab_state(const FamilyForward *f, const FamilyForwardScratch *w, size_t head, size_t slab)
{
    return w->states + (head * f->slabs + slab) * f->shape.ld * SLAB;
}

static uint16_t *slab_rounded(const FamilyForward *f, const FamilyForwardScratch *w, size_t head, size_t slab)
{
    return w->rounded + (head * f->slabs + slab) * f->shape.ld * SLAB;
}

/* Prepares the chunks of a span, of a head's tokens from t0 on. sum: of the keys before them, becomes that of the keys
 * after them. */
static void prepare_chunks(const ValueHead *h, size_t t0, size_t tokens, bool shared, Chunk *chunks, real *sum)
{
    for (size_t i = 0; i * CHUNK < tokens && !shared; i++)
        fetch_chunk(h, t0 + i * CHUNK, &chunks[i]);
    for (size_t i = 0; i * CHUNK < tokens; i++) {
        Chunk *c = &chunks[i];
        const size_t ld = c->shape.ld;
        if (c->shape.normalize)
            memcpy(c->z0, sum, ld * sizeof(real));
        prepare_chunk(h, t0 + i * CHUNK, shared, c);
        for (size_t t = 0; c->shape.normalize && t < c->n; t++)
            add(ld, c->k + t * ld, sum);
        real *kept = kept_sum(h, t0 + i * CHUNK + c->n);
        if (kept)
            copy(h->K, sum, kept);
    }
}

/* Numbers i .. i + n - 1 of token t, which will be read or written. */
ALWAYS_INLINE void prefetch_numbers(Tokens x, size_t t, size_t i, size_t n, bool written)
{
    const char *row = (const char *)tokens_from(x, t, i).data;
    for (size_t at = 0; at < n * bytes_of_number(x.numbers); at += CACHE_LINE)
        if (written)
            __builtin_prefetch(row + at, 1, 2);
        else
            __builtin_prefetch(row + at, 0, 2);
}

/* A slab's columns of the quad from token t on, and with the first slab the rows of its key and query: they lie too far
 * apart for the processor to foresee them. */
static void prefetch_quad(const ValueHead *h, size_t t, const Slab *slab)
{
    for (size_t s = t; s < fwm_min(t + QUAD, h->T); s++) {
        prefetch_numbers(h->v, s, slab->j0, slab->n, false);
        prefetch_numbers(h->o, s, slab->j0, slab->n, true);
        if (slab->j0 == 0) {
            prefetch_numbers(h->k, s, 0, h->K, false);
            prefetch_numbers(h->q, s, 0, h->K, false);
        }
    }
}

/* A prepared span on a slab, its tokens from t0 on. */
static void forward_slab(const FamilyForward *f, const ValueHead *h, size_t t0, size_t tokens, const Slab *slab,
                         const SpanRows *rows, FamilyForwardScratch *w, real *S, uint16_t *rounded)
{
    const size_t step = f->shape.erases ? QUAD : CHUNK;
    for (size_t i = 0; i * step < tokens; i++) {
        if (f->shape.erases && f->value_bytes > MOST_NOT_PREFETCHED)
            prefetch_quad(h, t0 + SPAN + i * QUAD, slab);
        if (f->shape.rounds)
            quad_forward_rounded(&w->span, i, rows, slab, S, rounded);
        else if (f->shape.erases)
            quad_forward(&w->span, i, rows, slab, S, S, NULL);
        else
            chunk_of_sums_forward(&w->chunks[i], i, rows, slab, S);
        real *kept = kept_state(h, t0 + fwm_min(tokens, (i + 1) * step));
        if (kept)
            store_slab(h, slab, f->shape.erases ? fold_slab(&w->span, i, S, w->folded) : S, kept);
    }
}

/* Whether values are read, and outputs written, where they lie: if they need no padding, nor do quads of tokens. */
static bool reads_in_place(const FamilyForward *f, const ValueHead *h, size_t tokens)
{
    return f->shape.erases && !f->shape.rounds && f->value_bytes <= MOST_IN_PLACE && f->ld_V == h->V &&
           tokens % QUAD == 0 && !h->w.data && !h->erase.data && h->v.numbers == FWM_REAL && h->o.numbers == FWM_REAL;
}

static SpanRows rows_in_place(const ValueHead *h, size_t t0, const Span *span)
{
    return (SpanRows){token(h->v, t0), h->v.stride, span->strength, token(h->o, t0), h->o.stride, h->V};
}

/* The span from token t0 on, on slabs first .. last - 1. The tokens of one head lie far apart: unless the caches hold
 * them, values are gathered before, and outputs scattered after, a whole row at a time, because stores that miss the
 * caches would hold up those of the state. */
static void forward_span(const FamilyForward *f, const ValueHead *head, size_t t0, size_t index, size_t first,
                         size_t last, FamilyForwardScratch *w)
{
    ValueHead h = *head;
    const size_t V = h.V, ld_V = f->ld_V, j0 = first * SLAB, columns = fwm_min(V, last * SLAB) - j0,
                 tokens = fwm_min(SPAN, h.T - t0);
    const bool shared = index > 0 && h.call->HQ == h.call->H; /* has the keys and queries of the head before */
    const bool in_place = reads_in_place(f, &h, tokens);
    SpanRows rows = {w->u, ld_V, NULL, w->o, ld_V, SPAN * ld_V};
    real *sum = w->sums + index * f->shape.ld;
    if (first > 0)
        h.kept_sums = NULL; /* the first group keeps them */
    if (f->shape.erases)
        prepare_span(&h, t0, SPAN, shared, &w->span, sum);
    else
        prepare_chunks(&h, t0, tokens, shared, w->chunks, sum);
    if (in_place)
        rows = rows_in_place(&h, t0, &w->span);
    else
        load_span_values(&h, t0, tokens, j0, columns, ld_V, w->u);
    for (size_t p = first; p < last; p++) {
        const Slab slab = slab_of(V, p);
        forward_slab(f, &h, t0, tokens, &slab, &rows, w, slab_state(f, w, index, p), slab_rounded(f, w, index, p));
    }
    for (size_t query = 0; query < h.R && !in_place; query++) {
        const Tokens o = {w->o + query * SPAN * ld_V, ld_V, FWM_REAL};
        copy_rows(tokens, j0, columns, o, tokens_from(h.o, t0, query * V));
    }
}

/* The states of the task's heads, from and to the caller's arrays. */
static void load_states(const FamilyForward *f, const ValueHead *h, size_t index, size_t first, size_t last,
                        const FamilyForwardScratch *w)
{
    for (size_t p = first; p < last; p++) {
        const Slab slab = slab_of(h->V, p);
        load_slab(h, &slab, h->initial_state, slab_state(f, w, index, p));
        if (f->shape.rounds)
            round_slab(h->K, slab_state(f, w, index, p), slab_rounded(f, w, index, p));
    }
    if (f->shape.normalize)
        load_row(h->K, f->shape.ld, h->initial_sum, w->sums + index * f->shape.ld);
}

static void store_states(const FamilyForward *f, const ValueHead *h, size_t index, size_t first, size_t last,
                         const FamilyForwardScratch *w)
{
    for (size_t p = first; p < last && h->final_state; p++) {
        const Slab slab = slab_of(h->V, p);
        store_slab(h, &slab, slab_state(f, w, index, p), h->final_state);
    }
}

static void forward_task(void *context, size_t task, int thread)
{
    const FamilyForward *f = context;
    const FwmRuleCall *call = f->call;
    const size_t unit = task / f->groups, group = task % f->groups, units = call->HV / f->heads; /* of a sequence */
    const size_t sequence = unit / units, hv = unit % units * f->heads;
    const size_t first = group * f->slabs / f->groups, last = (group + 1) * f->slabs / f->groups;
    Arena arena = arena_of_thread(f->scratch, thread, f->stride);
    FamilyForwardScratch w = take_scratch(f, &arena);
    /* packed among longer ones: the bits it has alone, where recurrent_serves */
    if (sequence_length(call, sequence) == 1) {
        for (size_t i = 0; group == 0 && i < f->heads; i++)
            one_token_forward(call, sequence, hv + i, f->scratch + (size_t)thread * f->stride);
        return;
    }
    for (size_t i = 0; i < f->heads; i++) {
        const ValueHead h = head_of(call, sequence, hv + i);
        load_states(f, &h, i, first, last, &w);
    }
    for (size_t t0 = 0; t0 < sequence_length(call, sequence); t0 += SPAN)
        for (size_t i = 0; i < f->heads; i++) {
            const ValueHead h = head_of(call, sequence, hv + i);
            forward_span(f, &h, t0, i, first, last, &w);
        }
    for (size_t i = 0; i < f->heads; i++) {
        const ValueHead h = head_of(call, sequence, hv + i);
        store_states(f, &h, i, first, last, &w);
    }
}

/* A task is the value heads of a key head, where that gives every thread work. Else it is one value head, divided into
 * as many groups of slabs as that takes, although every group prepares the spans anew. */
static FamilyForward forward_of(const FwmRuleCall *call, int threads, void *scratch)
{
    FamilyForward f = {
        .call = call, .shape = family_shape(call, true), .slabs = slabs_of(call->V), .groups = 1, .scratch = scratch};
    f.ld_V = fwm_padded(call->V);
    f.value_bytes = (size_t)call->offsets[call->n_sequences] * call->HV * call->V * sizeof(real);
    const size_t sharing = call->HV / call->H;
    f.heads = call->n_sequences * call->H < (size_t)threads || sharing > MOST_HEADS ? 1 : sharing;
    while (f.heads == 1 && call->n_sequences * call->HV * f.groups < (size_t)threads && f.groups < f.slabs)
        f.groups++;
    Arena arena = {0};
    take_scratch(&f, &arena);
    const size_t one_token = one_token_scratch(call);
    f.stride = arena.next > one_token ? arena.next : one_token;
    return f;
}

size_t family_forward_scratch(const void *rule_call, int threads)
{
    const FwmRuleCall *call = rule_call;
    const size_t core = recurrent_serves(call) ? recurrent_forward_scratch(call, threads)
                                               : forward_of(call, threads, NULL).stride * (size_t)threads;
    return erase_strengths_scratch(call, threads) + core;
}

/* final_sum = initial_sum + all keys. It comes last, because both may be the same array. */
static void sum_task(void *context, size_t index, int thread)
{
    const FwmRuleCall *call = context;
    (void)thread;
    const ValueHead h = head_of(call, index / call->H, index % call->H * (call->HV / call->H));
    real *restrict z = h.final_sum;
    for (size_t i = 0; i < h.K; i++)
        z[i] = h.initial_sum ? h.initial_sum[i] : 0;
    for (size_t t = 0; t < h.T; t++) {
        for (size_t i = 0; i < h.K; i++)
            z[i] += number_of(h.k, t, i);
    }
}

void family_forward(const void *rule_call, int threads, void *scratch)
{
    const FwmRuleCall with_strengths = erase_strengths(rule_call, threads, scratch), *call = &with_strengths;
    char *rest = (char *)scratch + erase_strengths_scratch(call, threads);
    if (recurrent_serves(call)) {
        recurrent_forward(call, threads, rest);
    } else {
        FamilyForward f = forward_of(call, threads, rest);
        fwm_parallel_for(threads, call->n_sequences * call->HV / f.heads * f.groups, forward_task, &f);
    }
    if (!call->final_sum)
        return;
    const bool flushes = fwm_loops_flush(false); /* a sum may consist of subnormal numbers only */
    fwm_parallel_for(threads, call->n_sequences * call->H, sum_task, (void *)call);
    fwm_loops_flush(flushes);
}
