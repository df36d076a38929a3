/* The family, backward. Everything is recomputed from the inputs: a first pass leaves a checkpoint, the state, before
 * each chunk, or, with many tokens, before each segment of chunks; then, segment by segment from the last, come the
 * state before each chunk and the values written in it, where they are not there, and, chunk by chunk from the last,
 * the gradients (slab_backward.c, chunk_backward.c).
 *
 * The columns' shares of a chunk's gradients are added up slab by slab, and the value heads of a key head add to its dk
 * and dq in order, whichever thread computed them: the bits do not depend on the number of threads. With as many key
 * heads as threads, a task is a key head. With fewer, they run one after the other, and the threads share the slabs and
 * the chunks of a segment. Value heads of a key head go over a segment one after the other, so that keys, queries and
 * their gradients move once.
 *
 * See docs/mathematics/rules.md. */
#include "kernels/rules/family/family.h"

#include <string.h>

#include "kernels/rules/family/backward_scratch.h"
#include "kernels/rules/family/normalised_delta.h"
#include "kernels/rules/family/recurrent.h"
#include "kernels/rules/family/rows.h"
#include "kernels/rules/family/slab.h"
#include "runtime/threads.h"

/* The backward of one head: what the tasks over its slabs and chunks share. */
typedef struct {
    const FamilyBackward *f;
    const ValueHead *h;
    const FamilyBackwardScratch *w;
    const HeadStates *states;
    bool shared;          /* the head before has the same keys, and was on the same segment last */
    size_t chunks;        /* of the head */
    size_t chunk0, count; /* of the segment */
    size_t fold_every;    /* tokens, of the segment's spans */
    bool shared_spans;    /* they hold what was prepared for the head before */
    ValueHead local; /* the head from the segment on, in the second pass its rows gathered unless threads share it */
} HeadBackward;

static void *scratch_of(const HeadBackward *p, int thread)
{
    return p->w->thread_scratch + (size_t)thread * p->w->thread_stride;
}

static real *slab_in(const HeadBackward *p, real *slabs, size_t index, size_t slab)
{
    return slabs + (index * p->f->slabs + slab) * p->f->slab_size;
}

/* What chunk i of the segment writes in a slab. */
static real *written(const HeadBackward *p, size_t i, size_t slab)
{
    return p->states->N + ((p->f->keeps ? p->chunk0 + i : i) * p->f->slabs + slab) * CHUNK * SLAB;
}

/* Whether the first pass has kept what the segment writes: it may have, of all but the last. */
static bool has_written(const HeadBackward *p)
{
    return p->f->keeps && p->chunk0 + p->f->segment < p->chunks;
}

/* Whether the chunks hold what was prepared for the head before; else spans lie there. */
static bool shares_chunks(const HeadBackward *p)
{
    return p->shared && p->h->call->HQ == p->h->call->H && has_written(p);
}

static void fetch_task(void *context, size_t i, int thread)
{
    const HeadBackward *p = context;
    (void)thread;
    fetch_chunk(&p->local, i * CHUNK, &p->w->chunks[i]);
}

static void prepare_task(void *context, size_t i, int thread)
{
    const HeadBackward *p = context;
    if (p->f->shape.normalize)
        p->w->chunks[i].z0 = p->w->z0 + (p->chunk0 + i) * p->f->shape.ld;
    (void)thread;
    prepare_chunk(&p->local, i * CHUNK, shares_chunks(p), &p->w->chunks[i]);
    prepare_chunk_backward(&p->w->chunks[i]);
}

/* The chunk without its queries. */
static Chunk without_queries(const HeadBackward *p, size_t i)
{
    Chunk c = p->w->chunks[i];
    c.shape = p->f->writing;
    return c;
}

static void prepare_span_task(void *context, size_t i, int thread)
{
    const HeadBackward *p = context;
    const size_t t0 = i * SPAN, n = fwm_min(SPAN, p->local.T - t0), ld_V = p->f->ld_V;
    (void)thread;
    if (p->f->shape.erases)
        prepare_span(&p->local, t0, p->fold_every, p->shared_spans, &p->w->spans[i], NULL);
    for (size_t t = t0; t < t0 + n && !p->f->shape.erases; t += CHUNK) {
        Chunk c = without_queries(p, t / CHUNK);
        fetch_chunk(&p->local, t, &c);
        prepare_chunk(&p->local, t, false, &c);
    }
    load_span_values(&p->local, t0, n, 0, p->h->V, ld_V, p->w->u + t0 * ld_V);
}

/* Prepares the spans of the segment. */
static void prepare_spans(HeadBackward *p, size_t fold_every, bool shared)
{
    p->fold_every = fold_every;
    p->shared_spans = shared;
    fwm_parallel_for(p->f->inner, fwm_tiles(p->count * CHUNK, SPAN), prepare_span_task, p);
}

/* Chunk i of the segment on a slab: from S0 before it to S after it, by the quads of its span if the rule erases. */
static void chunk_forward(const HeadBackward *p, size_t i, size_t slab, const real *S0, real *S)
{
    const size_t span = i * CHUNK / SPAN, quad0 = i * CHUNK % SPAN / QUAD, ld_V = p->f->ld_V;
    const Slab columns = slab_of(p->h->V, slab);
    const Span *r = &p->w->spans[span];
    const SpanRows rows = {.u = p->w->u + span * SPAN * ld_V, .ld_u = ld_V};
    real *N = written(p, i, slab);
    if (!p->f->shape.erases) {
        const Chunk c = without_queries(p, i);
        const real *u = p->w->u + i * CHUNK * ld_V + columns.j0;
        for (size_t t = 0; t < CHUNK; t++)
            copy(columns.padded, u + t * ld_V, N + t * SLAB);
        update_slab(&c, &columns, S0, N, SLAB, S);
        return;
    }
    const size_t quads = fwm_min(CHUNK / QUAD, r->quads - quad0);
    for (size_t quad = 0; quad < quads; quad++)
        quad_forward(r, quad0 + quad, &rows, &columns, quad ? S : S0, S, N + quad * QUAD * SLAB);
    memset(N + quads * QUAD * SLAB, 0, (CHUNK - quads * QUAD) * SLAB * sizeof(real));
}

/* The state before chunk i of the segment. */
static real *state_before(const HeadBackward *p, size_t i, size_t slab)
{
    return p->f->every == 1 ? slab_in(p, p->states->checkpoints, p->chunk0 + i, slab) : slab_in(p, p->w->S0, i, slab);
}

/* A slab over a segment: leaves the checkpoints after the one before it, up to the one after it. */
static void checkpoint_task(void *context, size_t slab, int thread)
{
    const HeadBackward *p = context;
    (void)thread;
    for (size_t i = 0; i < p->count; i++) {
        const size_t chunk = p->chunk0 + i, every = p->f->every;
        real *S = slab_in(p, p->states->checkpoints, chunk / every + 1, slab);
        chunk_forward(p, i, slab, chunk % every ? S : slab_in(p, p->states->checkpoints, chunk / every, slab), S);
    }
}

/* The states before the segment's chunks, and the values written in them, where they are not there. */
static void states_task(void *context, size_t slab, int thread)
{
    const HeadBackward *p = context;
    const Slab columns = slab_of(p->h->V, slab);
    (void)thread;
    if (p->f->every > 1)
        memcpy(state_before(p, 0, slab), slab_in(p, p->states->checkpoints, p->chunk0 / p->f->every, slab),
               p->f->slab_size * sizeof(real));
    for (size_t i = 0; i < p->count; i++) {
        const real *S0 = state_before(p, i, slab);
        real *S = state_before(p, i + 1, slab);
        if (!has_written(p))
            chunk_forward(p, i, slab, S0, S);
        else if (i + 1 < p->count)
            update_slab(&p->w->chunks[i], &columns, S0, written(p, i, slab), SLAB, S);
    }
}

/* Slab by slab the gradients of chunk i are added up at once, unless threads share the segment. */
static void slab_chunk_backward(const HeadBackward *p, size_t i, size_t slab, int thread)
{
    const bool apart = p->f->inner > 1;
    const Slab columns = slab_of(p->h->V, slab);
    slab_backward(&p->local, i * CHUNK, &p->w->chunks[i], &columns, state_before(p, i, slab), written(p, i, slab),
                  p->states->dS + slab * p->f->slab_size, apart || slab == 0,
                  &p->w->shares[apart ? i * p->f->slabs + slab : 0], scratch_of(p, thread));
}

/* A slab over the segment, from its last chunk. */
static void slab_task(void *context, size_t slab, int thread)
{
    const HeadBackward *p = context;
    for (size_t i = p->count; i-- > 0;)
        slab_chunk_backward(p, i, slab, thread);
}

static void chunk_task(void *context, size_t i, int thread)
{
    const HeadBackward *p = context;
    const bool apart = p->f->inner > 1;
    ChunkGradients *total = &p->w->shares[apart ? i * p->f->slabs : 0];
    for (size_t slab = 1; apart && slab < p->f->slabs; slab++)
        add_chunk_gradients(&p->f->shape, &total[slab], total);
    chunk_backward(&p->local, i * CHUNK, &p->w->chunks[i], total, p->states->dz, scratch_of(p, thread));
}

static void chunk_from_last_task(void *context, size_t i, int thread)
{
    const HeadBackward *p = context;
    chunk_task(context, p->count - 1 - i, thread);
}

/* Gathers the segment's tokens, unless threads share it. */
static void begin_segment(HeadBackward *p)
{
    const ValueHead head = head_from(p->h, p->chunk0 * CHUNK);
    const size_t tokens = fwm_min(p->count * CHUNK, head.T);
    p->local = p->f->inner > 1 ? head : gather_rows(&head, tokens, p->shared, p->w->rows);
}

/* Scatters their gradients; those of keys that the next head has too only after the last head. */
static void end_segment(const HeadBackward *p, bool last)
{
    const ValueHead head = head_from(p->h, p->chunk0 * CHUNK);
    if (p->f->inner == 1)
        scatter_rows(&p->local, fwm_min(p->count * CHUNK, head.T), last, &head);
}

/* The gradients of a segment: chunk by chunk, while its numbers are in the cache, or shared among threads. */
static void segment_backward(HeadBackward *p)
{
    const int inner = p->f->inner;
    if (!has_written(p)) {
        prepare_spans(p, CHUNK, false);
        fwm_parallel_for(inner, p->f->slabs, states_task, p);
    }
    if (!shares_chunks(p))
        fwm_parallel_for(inner, p->count, fetch_task, p);
    fwm_parallel_for(p->f->shape.normalize ? 1 : inner, p->count, prepare_task, p);
    if (has_written(p) && p->f->every > 1)
        fwm_parallel_for(inner, p->f->slabs, states_task, p);
    if (inner > 1) {
        fwm_parallel_for(inner, p->f->slabs, slab_task, p);
        fwm_parallel_for(p->f->shape.normalize ? 1 : inner, p->count, chunk_from_last_task, p);
        return;
    }
    for (size_t i = p->count; i-- > 0;) {
        for (size_t slab = 0; slab < p->f->slabs; slab++)
            slab_chunk_backward(p, i, slab, 0);
        chunk_task(p, i, 0);
    }
}

/* The sums of keys before all chunks. */
static void sum_keys(const ValueHead *h, const FamilyBackward *f, const FamilyBackwardScratch *w)
{
    const size_t ld = f->shape.ld;
    load_row(h->K, ld, h->initial_sum, w->z0);
    for (size_t t = 0; t < h->T; t++) {
        const real *k = token(h->k, t);
        real *z = w->z0 + t / CHUNK * ld;
        if (t % CHUNK == 0)
            memcpy(z + ld, z, ld * sizeof(real));
        for (size_t i = 0; i < h->K; i++)
            z[ld + i] += k[i];
    }
}

static void load_states(const HeadBackward *p)
{
    const ValueHead *h = p->h;
    for (size_t slab = 0; slab < p->f->slabs; slab++) {
        const Slab columns = slab_of(h->V, slab);
        load_slab(h, &columns, h->initial_state, slab_in(p, p->states->checkpoints, 0, slab));
        load_slab(h, &columns, h->dfinal_state, slab_in(p, p->states->dS, 0, slab));
    }
    load_row(h->K, p->f->shape.ld, h->dfinal_sum, p->states->dz);
}

static void store_gradients(const HeadBackward *p)
{
    const ValueHead *h = p->h;
    for (size_t slab = 0; slab < p->f->slabs && h->dinitial_state; slab++) {
        const Slab columns = slab_of(h->V, slab);
        store_slab(h, &columns, slab_in(p, p->states->dS, 0, slab), h->dinitial_state);
    }
    if (h->dinitial_sum)
        accumulate(h->K, p->states->dz, h->first_of_key, h->dinitial_sum);
}

static void first_pass(HeadBackward *p)
{
    p->local = head_from(p->h, p->chunk0 * CHUNK);
    prepare_spans(p, p->f->every == 1 ? CHUNK : SPAN, p->shared);
    fwm_parallel_for(p->f->inner, p->f->slabs, checkpoint_task, p);
}

static void second_pass(HeadBackward *p, bool last)
{
    begin_segment(p);
    segment_backward(p);
    end_segment(p, last);
}

/* Some value heads of a key head, from hv on: all of them over a segment before the first goes over the next. */
static void backward_heads(const FamilyBackward *f, size_t sequence, size_t hv, size_t heads,
                           const FamilyBackwardScratch *w)
{
    ValueHead h[MOST_HEADS];
    HeadBackward p[MOST_HEADS];
    const size_t chunks = fwm_tiles(sequence_length(f->call, sequence), CHUNK), segment = f->segment,
                 segments = fwm_tiles(chunks, segment);
    for (size_t i = 0; i < heads; i++) {
        h[i] = head_of(f->call, sequence, hv + i);
        p[i] = (HeadBackward){
            .f = f, .h = &h[i], .w = w, .states = &w->heads[i], .shared = i > 0, .chunks = chunks, .count = segment};
        load_states(&p[i]);
    }
    if (f->shape.normalize)
        sum_keys(&h[0], f, w);
    for (size_t at = 0; at + 1 < segments; at++)
        for (size_t i = 0; i < heads; i++) {
            p[i].chunk0 = at * segment;
            first_pass(&p[i]);
        }
    for (size_t at = segments; at-- > 0;)
        for (size_t i = 0; i < heads; i++) {
            p[i].chunk0 = at * segment;
            p[i].count = fwm_min(segment, chunks - p[i].chunk0);
            second_pass(&p[i], i + 1 == heads);
        }
    for (size_t i = 0; i < heads; i++)
        store_gradients(&p[i]);
}

/* The value heads of a key head. */
static void key_head_task(void *context, size_t index, int thread)
{
    const FamilyBackward *f = context;
    const FwmRuleCall *call = f->call;
    const size_t group = call->HV / call->H, first = index % call->H * group;
    Arena arena = arena_of_thread(f->scratch, thread, f->stride);
    /* packed among longer ones: the bits it has alone, where recurrent_serves */
    if (sequence_length(call, index / call->H) == 1) {
        one_token_backward(call, index / call->H, index % call->H, f->scratch + (size_t)thread * f->stride);
        return;
    }
    const FamilyBackwardScratch w = take_backward_scratch(f, &arena);
    for (size_t hv = first; hv < first + group; hv += f->heads)
        backward_heads(f, index / call->H, hv, fwm_min(f->heads, first + group - hv), &w);
}

size_t family_backward_scratch(const void *rule_call, int threads)
{
    const FwmRuleCall *call = rule_call;
    const size_t strengths = erase_strengths_scratch(call, threads);
    if (recurrent_serves(call))
        return strengths + recurrent_backward_scratch(call, threads);
    const FamilyBackward f = backward_of(call, threads, NULL);
    return strengths + f.stride * (size_t)f.outer;
}

void family_backward(const void *rule_call, int threads, void *scratch)
{
    const FwmRuleCall with_strengths = erase_strengths(rule_call, threads, scratch), *call = &with_strengths;
    char *rest = (char *)scratch + erase_strengths_scratch(call, threads);
    if (recurrent_serves(call)) {
        recurrent_backward(call, threads, rest);
    } else {
        FamilyBackward f = backward_of(call, threads, rest);
        fwm_parallel_for(f.outer, call->n_sequences * call->H, key_head_task, &f);
    }
    erase_strengths_backward(call, threads, scratch);
}
