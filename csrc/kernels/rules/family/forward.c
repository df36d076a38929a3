/* The family, forward. A task takes the value heads of a key head, all over a segment of some chunks before the next
 * segment, for they share keys, and their values lie side by side. For each it prepares the chunks, and runs slab after
 * slab over them. */
#include "kernels/rules/family/family.h"

#include <string.h>

#include "kernels/rules/family/recurrent.h"
#include "kernels/rules/family/slab.h"
#include "runtime/threads.h"

enum {
    CHUNKS = 4,    /* that are prepared at once: a slab is loaded into the first-level cache for so many */
    MOST_HEADS = 8 /* of a task: their states fit the second-level cache */
};

typedef struct {
    Chunk chunks[CHUNKS];
    real *states; /* heads x slabs x ld x W */
    real *sums;   /* heads x ld: of keys, with normalize */
    real *N;      /* C x W */
    real *v, *o;  /* CHUNKS C x V, CHUNKS C x R V: of the chunks at hand */
    void *slab_scratch;
} Memory;

typedef struct {
    const FwmRuleCall *m;
    ChunkShape shape;
    size_t slabs, groups; /* of a head */
    size_t heads;         /* of a task */
    char *scratch;
    size_t stride;
} Forward;

static Memory take_memory(const Forward *f, Arena *arena)
{
    Memory w;
    for (size_t i = 0; i < CHUNKS; i++)
        w.chunks[i] = take_chunk(&f->shape, arena);
    w.states = take(arena, f->heads * f->slabs * f->shape.ld * W);
    w.sums = take_bytes(arena, f->shape.normalize ? f->heads * f->shape.ld * sizeof(real) : 0);
    w.N = take(arena, C * W);
    w.v = take(arena, CHUNKS * C * f->m->V);
    w.o = take(arena, CHUNKS * C * queries_per_state(f->m) * f->m->V);
    w.slab_scratch = take_bytes(arena, slab_scratch(&f->shape));
    return w;
}

/* z0 += the keys of a chunk */
static void add_keys(const Chunk *c, real *z0)
{
    for (size_t t = 0; t < c->n; t++)
        add(c->shape.ld, c->k + t * c->shape.ld, z0);
}

/* The chunks of a segment, which h begins with; returns how many. sum: of the keys before it, becomes that behind it.
 */
static size_t prepare(const Head *h, bool shared, Chunk *chunks, real *sum)
{
    size_t count = 0;
    for (; count < CHUNKS && count * C < h->T; count++) {
        Chunk *c = &chunks[count];
        if (c->shape.normalize)
            memcpy(c->z0, sum, c->shape.ld * sizeof(real));
        prepare_chunk(h, count * C, shared, c);
        if (c->shape.normalize)
            add_keys(c, sum);
    }
    return count;
}

static real *slab_state(const Forward *f, const Memory *w, size_t head, size_t slab)
{
    return w->states + (head * f->slabs + slab) * f->shape.ld * W;
}

/* The chunks from token t0 on, on slabs first .. last - 1. The tokens of one head lie far apart: values are fetched,
 * and outputs brought away, a whole row at a time, for stores that miss the caches would hold up those of the state. */
static void run_chunks(const Forward *f, const Head *h, size_t t0, size_t index, size_t first, size_t last, Memory *w)
{
    const size_t V = h->V, j0 = first * W, columns = fwm_min(V, last * W) - j0, tokens = fwm_min(CHUNKS * C, h->T - t0);
    const Head there = head_from(h, t0);
    Head here = there;
    const bool shared = index > 0 && h->m->HQ == h->m->H; /* keys and queries with the head before */
    const size_t count = prepare(&here, shared, w->chunks, w->sums + index * f->shape.ld);
    here.v = (Tokens){w->v, V};
    here.o = (Tokens){w->o, h->R * V};
    copy_rows(tokens, j0, columns, there.v, here.v);
    for (size_t p = first; p < last; p++) {
        const Slab slab = slab_of(V, p);
        real *S = slab_state(f, w, index, p);
        for (size_t i = 0; i < count; i++)
            write_chunk(&here, i * C, &w->chunks[i], &slab, S, S, w->N, w->slab_scratch);
    }
    for (size_t r = 0; r < h->R; r++)
        copy_rows(tokens, r * V + j0, columns, here.o, there.o);
}

/* States of the task's heads to and from the caller's arrays. */
static void load_states(const Forward *f, const Head *h, size_t index, size_t first, size_t last, const Memory *w)
{
    for (size_t p = first; p < last; p++) {
        const Slab slab = slab_of(h->V, p);
        load_slab(&slab, h->K, h->V, h->initial_state, slab_state(f, w, index, p));
    }
    if (f->shape.normalize)
        load_row(h->K, f->shape.ld, h->initial_sum, w->sums + index * f->shape.ld);
}

static void store_states(const Forward *f, const Head *h, size_t index, size_t first, size_t last, const Memory *w)
{
    for (size_t p = first; p < last && h->final_state; p++) {
        const Slab slab = slab_of(h->V, p);
        store_slab(&slab, h->K, h->V, slab_state(f, w, index, p), h->final_state);
    }
}

static void forward_task(void *context, size_t task, int thread)
{
    const Forward *f = context;
    const FwmRuleCall *m = f->m;
    const size_t unit = task / f->groups, group = task % f->groups, units = m->HV / f->heads; /* of a sequence */
    const size_t sequence = unit / units, hv = unit % units * f->heads;
    const size_t first = group * f->slabs / f->groups, last = (group + 1) * f->slabs / f->groups;
    Arena arena = arena_at(f->scratch + (size_t)thread * f->stride);
    Memory w = take_memory(f, &arena);
    if (sequence_length(m, sequence) == 1) { /* among longer ones: as by itself, where recurrent_serves */
        for (size_t i = 0; group == 0 && i < f->heads; i++)
            one_token_forward(m, sequence, hv + i, f->scratch + (size_t)thread * f->stride);
        return;
    }
    for (size_t i = 0; i < f->heads; i++) {
        const Head h = head_of(m, sequence, hv + i);
        load_states(f, &h, i, first, last, &w);
    }
    for (size_t t0 = 0; t0 < sequence_length(m, sequence); t0 += CHUNKS * C)
        for (size_t i = 0; i < f->heads; i++) {
            const Head h = head_of(m, sequence, hv + i);
            run_chunks(f, &h, t0, i, first, last, &w);
        }
    for (size_t i = 0; i < f->heads; i++) {
        const Head h = head_of(m, sequence, hv + i);
        store_states(f, &h, i, first, last, &w);
    }
}

/* The value heads of a key head are a task, where that gives every thread work; else each is one, divided into as many
 * groups of slabs as it takes, though every group prepares again. */
static Forward forward_of(const FwmRuleCall *m, int threads, void *scratch)
{
    Forward f = {.m = m, .shape = chunk_shape(m, true), .slabs = slabs_of(m->V), .groups = 1, .scratch = scratch};
    const size_t sharing = m->HV / m->H;
    f.heads = m->n_sequences * m->H < (size_t)threads || sharing > MOST_HEADS ? 1 : sharing;
    while (f.heads == 1 && m->n_sequences * m->HV * f.groups < (size_t)threads && f.groups < f.slabs)
        f.groups++;
    Arena arena = {0};
    take_memory(&f, &arena);
    const size_t one_token = one_token_scratch(m);
    f.stride = arena.next > one_token ? arena.next : one_token;
    return f;
}

size_t family_forward_scratch(const void *call, int threads)
{
    const FwmRuleCall *m = call;
    return recurrent_serves(m) ? recurrent_forward_scratch(m, threads)
                               : forward_of(m, threads, NULL).stride * (size_t)threads;
}

/* final_sum = initial_sum + all keys: behind the rest, which may start from the same array. */
static void sum_task(void *context, size_t index, int thread)
{
    const FwmRuleCall *m = context;
    (void)thread;
    const Head h = head_of(m, index / m->H, index % m->H * (m->HV / m->H));
    real *restrict z = h.final_sum;
    for (size_t i = 0; i < h.K; i++)
        z[i] = h.initial_sum ? h.initial_sum[i] : 0;
    for (size_t t = 0; t < h.T; t++) {
        const real *restrict k = token(h.k, t);
        for (size_t i = 0; i < h.K; i++)
            z[i] += k[i];
    }
}

void family_forward(const void *call, int threads, void *scratch)
{
    const FwmRuleCall *m = call;
    if (recurrent_serves(m)) {
        recurrent_forward(m, threads, scratch);
    } else {
        Forward f = forward_of(m, threads, scratch);
        fwm_parallel_for(threads, m->n_sequences * m->HV / f.heads * f.groups, forward_task, &f);
    }
    if (!m->final_sum)
        return;
    const bool flushes = fwm_loops_flush(false); /* a sum may have no other numbers than subnormal ones */
    fwm_parallel_for(threads, m->n_sequences * m->H, sum_task, (void *)m);
    fwm_loops_flush(flushes);
}
