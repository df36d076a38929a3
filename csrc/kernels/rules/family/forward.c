/* The family, forward. A task is the value heads of a key head. They share keys, and their values lie side by side: so
 * all of them go over some chunks before the first goes over the next chunks. For each head the task prepares the
 * chunks, and runs slab after slab over them.
 *
 * See docs/mathematics/rules.md. */
#include "kernels/rules/family/family.h"

#include <string.h>

#include "kernels/rules/family/normalised_delta.h"
#include "kernels/rules/family/recurrent.h"
#include "kernels/rules/family/slab.h"
#include "runtime/threads.h"

enum {
    CHUNKS_AT_ONCE = 4, /* a slab is loaded into the first-level cache once for so many */
    MOST_HEADS = 8      /* of a task: their states fit the second-level cache */
};

typedef struct {
    Chunk chunks[CHUNKS_AT_ONCE];
    real *states; /* heads x slabs x ld x W */
    real *sums;   /* heads x ld: of keys, with normalize */
    real *N;      /* C x W */
    real *v, *o;  /* CHUNKS_AT_ONCE C x V, CHUNKS_AT_ONCE C x R V: of the chunks */
    void *slab_scratch;
} FamilyForwardScratch;

typedef struct {
    const FwmRuleCall *call;
    ChunkShape shape;
    size_t slabs, groups; /* of a head */
    size_t heads;         /* of a task */
    char *scratch;
    size_t stride;
} FamilyForward;

static FamilyForwardScratch take_scratch(const FamilyForward *f, Arena *arena)
{
    FamilyForwardScratch w;
    for (size_t i = 0; i < CHUNKS_AT_ONCE; i++)
        w.chunks[i] = take_chunk(&f->shape, arena);
    w.states = take(arena, f->heads * f->slabs * f->shape.ld * SLAB);
    w.sums = take_bytes(arena, f->shape.normalize ? f->heads * f->shape.ld * sizeof(real) : 0);
    w.N = take(arena, CHUNK * SLAB);
    w.v = take(arena, CHUNKS_AT_ONCE * CHUNK * f->call->V);
    w.o = take(arena, CHUNKS_AT_ONCE * CHUNK * queries_per_state(f->call) * f->call->V);
    w.slab_scratch = take_bytes(arena, slab_forward_scratch(&f->shape));
    return w;
}

/* z0 += the keys of a chunk */
static void add_keys(const Chunk *c, real *z0)
{
    for (size_t t = 0; t < c->n; t++)
        add(c->shape.ld, c->k + t * c->shape.ld, z0);
}

/* Prepares the first chunks of a head, from token t0 of its sequence on; returns how many. sum: of the keys before
 * them, becomes that of the keys after them. */
static size_t prepare_chunks(const ValueHead *h, size_t t0, bool shared, Chunk *chunks, real *sum)
{
    size_t count = 0;
    for (; count < CHUNKS_AT_ONCE && count * CHUNK < h->T; count++) {
        Chunk *c = &chunks[count];
        if (c->shape.normalize)
            memcpy(c->z0, sum, c->shape.ld * sizeof(real));
        prepare_chunk(h, count * CHUNK, shared, c);
        if (!c->shape.normalize)
            continue;
        add_keys(c, sum);
        real *kept = kept_sum(h, t0 + count * CHUNK + c->n);
        if (kept)
            copy(h->K, sum, kept);
    }
    return count;
}

static real *slab_state(const FamilyForward *f, const FamilyForwardScratch *w, size_t head, size_t slab)
{
    return w->states + (head * f->slabs + slab) * f->shape.ld * SLAB;
}

/* The chunks from token t0 on, on slabs first .. last - 1. The tokens of one head lie far apart: values are gathered
 * before, and outputs scattered after, a whole row at a time, because stores that miss the caches would hold up those
 * of the state. */
static void run_chunks(const FamilyForward *f, const ValueHead *h, size_t t0, size_t index, size_t first, size_t last,
                       FamilyForwardScratch *w)
{
    const size_t V = h->V, j0 = first * SLAB, columns = fwm_min(V, last * SLAB) - j0,
                 tokens = fwm_min(CHUNKS_AT_ONCE * CHUNK, h->T - t0);
    const ValueHead head = head_from(h, t0);
    ValueHead gathered = head;
    if (first > 0)
        gathered.kept_sums = NULL;                              /* the first group keeps them */
    const bool shared = index > 0 && h->call->HQ == h->call->H; /* has the keys and queries of the head before */
    const size_t count = prepare_chunks(&gathered, t0, shared, w->chunks, w->sums + index * f->shape.ld);
    gathered.v = (Tokens){w->v, V};
    gathered.o = (Tokens){w->o, h->R * V};
    copy_rows(tokens, j0, columns, head.v, gathered.v);
    for (size_t p = first; p < last; p++) {
        const Slab slab = slab_of(V, p);
        real *S = slab_state(f, w, index, p);
        for (size_t i = 0; i < count; i++) {
            slab_forward(&gathered, i * CHUNK, &w->chunks[i], &slab, S, S, w->N, w->slab_scratch);
            real *kept = kept_state(h, t0 + i * CHUNK + w->chunks[i].n);
            if (kept)
                store_slab(h, &slab, S, kept);
        }
    }
    for (size_t r = 0; r < h->R; r++)
        copy_rows(tokens, r * V + j0, columns, gathered.o, head.o);
}

/* The states of the task's heads, from and to the caller's arrays. */
static void load_states(const FamilyForward *f, const ValueHead *h, size_t index, size_t first, size_t last,
                        const FamilyForwardScratch *w)
{
    for (size_t p = first; p < last; p++) {
        const Slab slab = slab_of(h->V, p);
        load_slab(h, &slab, h->initial_state, slab_state(f, w, index, p));
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
    for (size_t t0 = 0; t0 < sequence_length(call, sequence); t0 += CHUNKS_AT_ONCE * CHUNK)
        for (size_t i = 0; i < f->heads; i++) {
            const ValueHead h = head_of(call, sequence, hv + i);
            run_chunks(f, &h, t0, i, first, last, &w);
        }
    for (size_t i = 0; i < f->heads; i++) {
        const ValueHead h = head_of(call, sequence, hv + i);
        store_states(f, &h, i, first, last, &w);
    }
}

/* A task is the value heads of a key head, where that gives every thread work. Else it is one value head, divided into
 * as many groups of slabs as that takes, although every group prepares the chunks anew. */
static FamilyForward forward_of(const FwmRuleCall *call, int threads, void *scratch)
{
    FamilyForward f = {
        .call = call, .shape = chunk_shape(call, true), .slabs = slabs_of(call->V), .groups = 1, .scratch = scratch};
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
        const real *restrict k = token(h.k, t);
        for (size_t i = 0; i < h.K; i++)
            z[i] += k[i];
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
