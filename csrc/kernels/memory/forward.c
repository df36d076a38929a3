/* The family, forward: a task is a group of slabs of a head. It prepares some chunks, and runs each of its slabs over them. */
#include "kernels/memory/family.h"

#include <string.h>

#include "kernels/memory/recurrent.h"
#include "kernels/memory/slab.h"
#include "runtime/subnormals.h"
#include "runtime/threads.h"

enum { CHUNKS = 4 }; /* that are prepared at once: a slab is loaded into the first-level cache for so many */

typedef struct {
    Chunk chunks[CHUNKS];
    real *state; /* slabs x ld x W */
    real *N;     /* C x W */
    real *v, *o; /* CHUNKS C x V, CHUNKS C x R V: of the chunks at hand */
    void *slab_scratch;
} Memory;

typedef struct {
    const FwmMemory *m;
    ChunkShape shape;
    size_t slabs, groups; /* of a head */
    char *scratch;
    size_t stride;
} Forward;

static Memory take_memory(const Forward *f, uintptr_t *next)
{
    Memory w;
    for (size_t i = 0; i < CHUNKS; i++)
        w.chunks[i] = take_chunk(&f->shape, next);
    w.state = take(next, f->slabs * f->shape.ld * W * sizeof(real));
    w.N = take(next, C * W * sizeof(real));
    w.v = take(next, CHUNKS * C * f->m->V * sizeof(real));
    w.o = take(next, CHUNKS * C * queries_per_state(f->m) * f->m->V * sizeof(real));
    w.slab_scratch = take(next, slab_scratch(&f->shape));
    return w;
}

/* z0 += the keys of a chunk */
static void add_keys(const Chunk *c, real *z0)
{
    for (size_t t = 0; t < c->n; t++)
        add(c->shape.ld, c->k + t * c->shape.ld, z0);
}

/* The chunks of a head from its token t0 on, which h begins with; returns how many. */
static size_t prepare(const Forward *f, const Head *h, size_t t0, Memory *w)
{
    size_t count = 0;
    for (; count < CHUNKS && count * C < h->T; count++) {
        Chunk *c = &w->chunks[count];
        if (f->shape.normalize && t0 + count > 0) {
            const Chunk *before = &w->chunks[(count + CHUNKS - 1) % CHUNKS];
            if (c != before)
                memcpy(c->z0, before->z0, f->shape.ld * sizeof(real));
            add_keys(before, c->z0);
        } else if (f->shape.normalize) {
            load_row(h->K, f->shape.ld, h->initial_sum, c->z0);
        }
        prepare_chunk(h, count * C, c);
    }
    return count;
}

/* The chunks from token t0 on, on slabs first .. last - 1. The tokens of one head lie far apart: values are fetched, and outputs
 * brought away, a whole row at a time, for stores that miss the caches would hold up those of the state. */
static void run_chunks(const Forward *f, const Head *h, size_t t0, size_t first, size_t last, Memory *w)
{
    const size_t V = h->V, j0 = first * W, columns = fwm_min(V, last * W) - j0, tokens = fwm_min(CHUNKS * C, h->T - t0);
    const Head there = head_from(h, t0);
    Head here = there;
    const size_t count = prepare(f, &here, t0, w);
    here.v = (Tokens){w->v, V};
    here.o = (Tokens){w->o, h->R * V};
    copy_rows(tokens, j0, columns, there.v, here.v);
    for (size_t p = first; p < last; p++) {
        const Slab slab = slab_of(V, p);
        real *S = w->state + p * f->shape.ld * W;
        for (size_t i = 0; i < count; i++)
            write_chunk(&here, i * C, &w->chunks[i], &slab, S, S, w->N, w->slab_scratch);
    }
    for (size_t r = 0; r < h->R; r++)
        copy_rows(tokens, r * V + j0, columns, here.o, there.o);
}

static void forward_task(void *context, size_t index, int thread)
{
    const Forward *f = context;
    const FwmMemory *m = f->m;
    const size_t head = index / f->groups, group = index % f->groups, K = m->K, V = m->V;
    const size_t first = group * f->slabs / f->groups, last = (group + 1) * f->slabs / f->groups;
    const Head h = head_of(m, head / m->HV, head % m->HV);
    const FwmSubnormals before = fwm_subnormals(true);
    uintptr_t next = (uintptr_t)(f->scratch + (size_t)thread * f->stride);
    Memory w = take_memory(f, &next);
    for (size_t p = first; p < last; p++) {
        const Slab slab = slab_of(V, p);
        load_slab(&slab, K, V, h.initial_state, w.state + p * f->shape.ld * W);
    }
    for (size_t t0 = 0; t0 < h.T; t0 += CHUNKS * C)
        run_chunks(f, &h, t0, first, last, &w);
    for (size_t p = first; p < last && h.final_state; p++) {
        const Slab slab = slab_of(V, p);
        store_slab(&slab, K, V, w.state + p * f->shape.ld * W, h.final_state);
    }
    fwm_restore_subnormals(before);
}

/* Into how many tasks a head is divided: as many as give every thread work, but preparing is done again for each. */
static size_t groups_of(size_t heads, size_t slabs, int threads)
{
    size_t groups = 1;
    while (heads * groups < (size_t)threads && groups < slabs)
        groups++;
    return groups;
}

static Forward forward_of(const FwmMemory *m, int threads, void *scratch)
{
    const size_t slabs = slabs_of(m->V);
    Forward f = {.m = m, .shape = chunk_shape(m, true), .slabs = slabs, .groups = groups_of(m->n_sequences * m->HV, slabs, threads),
                 .scratch = scratch};
    uintptr_t next = 0;
    take_memory(&f, &next);
    f.stride = next;
    return f;
}

size_t family_forward_scratch(const FwmMemory *m, int threads)
{
    return recurrent_serves(m) ? recurrent_forward_scratch(m, threads) : forward_of(m, threads, NULL).stride * (size_t)threads;
}

/* final_sum = initial_sum + all keys: behind the rest, which may start from the same array. */
static void sum_task(void *context, size_t index, int thread)
{
    const FwmMemory *m = context;
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

void family_forward(const FwmMemory *m, int threads, void *scratch)
{
    if (recurrent_serves(m)) {
        recurrent_forward(m, threads, scratch);
    } else {
        Forward f = forward_of(m, threads, scratch);
        fwm_parallel_for(threads, m->n_sequences * m->HV * f.groups, forward_task, &f);
    }
    if (m->final_sum)
        fwm_parallel_for(threads, m->n_sequences * m->H, sum_task, (void *)m);
}
