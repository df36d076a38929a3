/* The family, backward. Everything is recomputed from the inputs: a first pass leaves a checkpoint, the state, before
 * each chunk, or, with many tokens, before each segment of chunks; then, segment by segment from the last, come the
 * state before each chunk and the values written in it, where they are not there, and, chunk by chunk from the last,
 * the gradients (slab_backward.c, chunk_backward.c).
 *
 * The columns' shares of a chunk's gradients are added up slab by slab, and the value heads of a key head add to its dk
 * and dq in order, whichever thread computed them: the bits do not depend on the number of threads. With as many key
 * heads as threads, a task is a key head. With fewer, heads run one after the other, and the threads share the slabs
 * and the chunks of a segment.
 *
 * See docs/mathematics/rules.md. */
#include "kernels/rules/family/family.h"

#include <string.h>

#include "kernels/rules/family/normalised_delta.h"
#include "kernels/rules/family/recurrent.h"
#include "kernels/rules/family/rows.h"
#include "kernels/rules/family/slab.h"
#include "runtime/threads.h"

#define SHORTEST_SEGMENT 8 /* chunks: their states fit the second-level cache */
/* Of a head; with more, segments get longer, as long as that saves memory. */
#define CHECKPOINT_BYTES ((size_t)12 << 20)
#define KEPT_BYTES ((size_t)17 << 20) /* of a head's written values; with more, they are recomputed */

typedef struct {
    const FwmRuleCall *call;
    FamilyShape shape, writing; /* with the queries, and without */
    size_t slabs, slab_size;    /* numbers of a slab */
    size_t ld_V;                /* V, padded */
    size_t longest, segment;    /* chunks of the longest sequence, of a segment */
    size_t every;               /* chunks from one checkpoint to the next: 1 or a segment */
    bool keeps;                 /* whether the values that the first pass writes are kept; else they are recomputed */
    int outer, inner;           /* threads over key heads, and threads within a head */
    char *scratch;
    size_t stride;
} FamilyBackward;

typedef struct {
    real *checkpoints;      /* (longest / every + 1) x slabs x slab_size */
    real *z0;               /* (longest + 1) x ld: the sum of keys before each chunk, with normalize */
    Chunk *chunks;          /* a segment */
    Span *spans;            /* a segment, without its queries */
    real *u;                /* a segment's tokens x ld_V */
    real *S0;               /* (a segment + 1) x slabs x slab_size, unless there is a checkpoint before every chunk */
    real *N;                /* a segment (all, if kept) x slabs x C x W */
    real *dS;               /* slabs x slab_size */
    real *rows;             /* the segment's tokens gathered, inputs and gradients: unless threads share it */
    real *dz;               /* ld */
    ChunkGradients *shares; /* of a chunk; or, if threads share the segment, of its chunks x slabs */
    char *thread_scratch;
    size_t thread_stride;
} FamilyBackwardScratch;

/* The backward of one head: what the tasks over its slabs and chunks share. */
typedef struct {
    const FamilyBackward *f;
    const ValueHead *h;
    const FamilyBackwardScratch *w;
    size_t chunks;        /* of the head */
    size_t chunk0, count; /* of the segment */
    size_t fold_every;    /* tokens, of the segment's spans */
    ValueHead local; /* the head from the segment on, in the second pass its rows gathered unless threads share it */
} HeadBackward;

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

static ChunkGradients *take_all_gradients(const FamilyBackward *f, size_t n, bool has_memory, Arena *arena)
{
    ChunkGradients *all = take_bytes(arena, n * sizeof *all);
    for (size_t i = 0; i < n; i++) {
        const ChunkGradients one = take_chunk_gradients(&f->shape, arena);
        if (has_memory)
            all[i] = one;
    }
    return all;
}

/* Of a segment; only rules that erase go by spans. */
static size_t spans_of(const FamilyBackward *f)
{
    return f->shape.erases ? f->segment * CHUNK / SPAN : 0;
}

static size_t shares_of(const FamilyBackward *f)
{
    return f->inner > 1 ? f->segment * f->slabs : 1;
}

static FamilyBackwardScratch take_scratch(const FamilyBackward *f, Arena *arena)
{
    const bool has_memory = arena->next != 0;
    const size_t slab = f->slab_size * sizeof(real), segments = fwm_tiles(f->longest, f->segment), ld = f->shape.ld;
    FamilyBackwardScratch w;
    w.checkpoints = take_bytes(arena, (fwm_tiles(f->longest, f->every) + 1) * f->slabs * slab);
    w.z0 = take_bytes(arena, f->shape.normalize ? (f->longest + 1) * ld * sizeof(real) : 0);
    w.chunks = take_bytes(arena, f->segment * sizeof(Chunk));
    w.spans = take_bytes(arena, spans_of(f) * sizeof(Span));
    Arena of_spans = *arena; /* spans and what they write are not needed at the same time as chunks */
    for (size_t i = 0; i < spans_of(f); i++) {
        const Span span = take_span(&f->writing, &of_spans);
        if (has_memory)
            w.spans[i] = span;
    }
    w.u = take(f->shape.erases ? &of_spans : arena, f->segment * CHUNK * f->ld_V);
    for (size_t i = 0; i < f->segment; i++) {
        const Chunk c = take_chunk(&f->shape, arena);
        if (has_memory)
            w.chunks[i] = c;
    }
    arena->next = largest(arena->next, of_spans.next);
    w.S0 = take_bytes(arena, (f->every > 1 ? f->segment + 1 : 0) * f->slabs * slab);
    w.N = take(arena, (f->keeps ? segments : 1) * f->segment * f->slabs * CHUNK * SLAB);
    w.dS = take_bytes(arena, f->slabs * slab);
    w.rows = take(arena, f->inner > 1 ? 0 : f->segment * CHUNK * numbers_of_token(f->call));
    w.dz = take(arena, ld);
    w.shares = take_all_gradients(f, shares_of(f), has_memory, arena);
    w.thread_stride = largest(chunk_backward_scratch(&f->shape), slab_backward_scratch(&f->shape));
    w.thread_stride = (w.thread_stride + 63) / 64 * 64;
    w.thread_scratch = take_bytes(arena, w.thread_stride * (size_t)f->inner);
    return w;
}

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
    return p->w->N + ((p->f->keeps ? p->chunk0 + i : i) * p->f->slabs + slab) * CHUNK * SLAB;
}

static void prepare_task(void *context, size_t i, int thread)
{
    const HeadBackward *p = context;
    if (p->f->shape.normalize)
        p->w->chunks[i].z0 = p->w->z0 + (p->chunk0 + i) * p->f->shape.ld;
    (void)thread;
    prepare_chunk(&p->local, i * CHUNK, false, &p->w->chunks[i]);
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
        prepare_span(&p->local, t0, p->fold_every, false, &p->w->spans[i], NULL);
    for (size_t t = t0; t < t0 + n && !p->f->shape.erases; t += CHUNK) {
        Chunk c = without_queries(p, t / CHUNK);
        prepare_chunk(&p->local, t, false, &c);
    }
    load_span_values(&p->local, t0, n, 0, p->h->V, ld_V, p->w->u + t0 * ld_V);
}

/* Prepares the spans of the segment. */
static void prepare_spans(HeadBackward *p, size_t fold_every)
{
    p->fold_every = fold_every;
    fwm_parallel_for(p->f->inner, fwm_tiles(p->count * CHUNK, SPAN), prepare_span_task, p);
}

/* Chunk i of the segment on a slab: from S0 before it to S after it, by the quads of its span if the rule erases. */
static void chunk_forward(const HeadBackward *p, size_t i, size_t slab, const real *S0, real *S)
{
    const size_t span = i * CHUNK / SPAN, quad0 = i * CHUNK % SPAN / QUAD, ld_V = p->f->ld_V;
    const Slab columns = slab_of(p->h->V, slab);
    const Span *r = &p->w->spans[span];
    const SpanRows rows = {p->w->u + span * SPAN * ld_V, NULL, ld_V};
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
    return p->f->every == 1 ? slab_in(p, p->w->checkpoints, p->chunk0 + i, slab) : slab_in(p, p->w->S0, i, slab);
}

/* A slab over a segment: from the checkpoint before it to the one after it. */
static void checkpoint_task(void *context, size_t slab, int thread)
{
    const HeadBackward *p = context;
    (void)thread;
    for (size_t i = 0; i < p->count; i++) {
        const size_t chunk = p->chunk0 + i, every = p->f->every;
        real *S = slab_in(p, p->w->checkpoints, chunk / every + 1, slab);
        chunk_forward(p, i, slab, chunk % every ? S : slab_in(p, p->w->checkpoints, chunk / every, slab), S);
    }
}

/* Whether the first pass has kept what the segment writes: it may have, of all but the last. */
static bool has_written(const HeadBackward *p)
{
    return p->f->keeps && p->chunk0 + p->f->segment < p->chunks;
}

/* The states before the segment's chunks, and the values written in them, where they are not there. */
static void states_task(void *context, size_t slab, int thread)
{
    const HeadBackward *p = context;
    const Slab columns = slab_of(p->h->V, slab);
    (void)thread;
    if (p->f->every > 1)
        memcpy(state_before(p, 0, slab), slab_in(p, p->w->checkpoints, p->chunk0 / p->f->every, slab),
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
                  p->w->dS + slab * p->f->slab_size, apart || slab == 0,
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
    chunk_backward(&p->local, i * CHUNK, &p->w->chunks[i], total, p->w->dz, scratch_of(p, thread));
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
    p->local = p->f->inner > 1 ? head : gather_rows(&head, fwm_min(p->count * CHUNK, head.T), p->w->rows);
}

static void end_segment(const HeadBackward *p)
{
    const ValueHead head = head_from(p->h, p->chunk0 * CHUNK);
    if (p->f->inner == 1)
        scatter_rows(&p->local, fwm_min(p->count * CHUNK, head.T), &head);
}

/* The gradients of a segment: chunk by chunk, while its numbers are in the cache, or shared among threads. */
static void segment_backward(HeadBackward *p)
{
    const int inner = p->f->inner;
    if (!has_written(p)) {
        prepare_spans(p, CHUNK);
        fwm_parallel_for(inner, p->f->slabs, states_task, p);
    }
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

static void backward_head(const FamilyBackward *f, const ValueHead *h, const FamilyBackwardScratch *w)
{
    const size_t chunks = fwm_tiles(h->T, CHUNK), segments = fwm_tiles(chunks, f->segment), K = h->K;
    HeadBackward p = {.f = f, .h = h, .w = w, .chunks = chunks};
    for (size_t slab = 0; slab < f->slabs; slab++) {
        const Slab columns = slab_of(h->V, slab);
        load_slab(h, &columns, h->initial_state, slab_in(&p, w->checkpoints, 0, slab));
        load_slab(h, &columns, h->dfinal_state, slab_in(&p, w->dS, 0, slab));
    }
    load_row(K, f->shape.ld, h->dfinal_sum, w->dz);
    if (f->shape.normalize)
        sum_keys(h, f, w);
    p.count = f->segment;
    for (p.chunk0 = 0; p.chunk0 + f->segment < segments * f->segment; p.chunk0 += f->segment) {
        p.local = head_from(h, p.chunk0 * CHUNK);
        prepare_spans(&p, f->every == 1 ? CHUNK : SPAN);
        fwm_parallel_for(f->inner, f->slabs, checkpoint_task, &p);
    }
    for (size_t segment = segments; segment-- > 0;) {
        p.chunk0 = segment * f->segment;
        p.count = fwm_min(f->segment, chunks - p.chunk0);
        begin_segment(&p);
        segment_backward(&p);
        end_segment(&p);
    }
    for (size_t slab = 0; slab < f->slabs && h->dinitial_state; slab++) {
        const Slab columns = slab_of(h->V, slab);
        store_slab(h, &columns, slab_in(&p, w->dS, 0, slab), h->dinitial_state);
    }
    if (h->dinitial_sum)
        accumulate(K, w->dz, h->first_of_key, h->dinitial_sum);
}

/* Rows beyond K are read as padding, and never written. */
static void clear_padding(const FamilyBackward *f, const FamilyBackwardScratch *w)
{
    const size_t K = f->shape.K, rows = f->shape.ld - K, M = f->shape.readers * CHUNK;
    for (size_t i = 0; i < shares_of(f); i++) {
        memset(w->shares[i].dx0 + K * M, 0, rows * M * sizeof(real));
        memset(w->shares[i].dk1 + K * CHUNK, 0, rows * CHUNK * sizeof(real));
        memset(w->shares[i].ddecay + K, 0, rows * sizeof(real));
    }
}

/* The value heads of a key head, one after the other. */
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
    const FamilyBackwardScratch w = take_scratch(f, &arena);
    clear_padding(f, &w);
    for (size_t hv = first; hv < first + group; hv++) {
        const ValueHead h = head_of(call, index / call->H, hv);
        backward_head(f, &h, &w);
    }
}

static size_t bytes_of_thread(const FamilyBackward *f)
{
    Arena arena = {0};
    take_scratch(f, &arena);
    return arena.next;
}

/* Where there is memory for a checkpoint before every chunk, no state is made twice. Else longer segments need fewer
 * checkpoints between them, and more states within: the sum grows with the square root of T. The bits depend on the
 * choice, so the number of threads does not enter. */
static void choose_segment(FamilyBackward *f)
{
    const size_t most = largest(2, CHECKPOINT_BYTES / (f->slabs * f->slab_size * sizeof(real)));
    FamilyBackward alone = *f;
    alone.inner = 1;
    alone.segment = SHORTEST_SEGMENT;
    alone.every = f->longest <= most ? 1 : alone.segment;
    while (alone.every > 1 && fwm_tiles(f->longest, alone.segment) > most) {
        FamilyBackward longer = alone;
        longer.every = longer.segment *= 2;
        if (bytes_of_thread(&longer) >= bytes_of_thread(&alone))
            break;
        alone = longer;
    }
    f->every = alone.every;
    f->segment = alone.segment;
}

static FamilyBackward backward_of(const FwmRuleCall *call, int threads, void *scratch)
{
    FamilyBackward f = {
        .call = call, .shape = family_shape(call, true), .writing = family_shape(call, false), .scratch = scratch};
    f.ld_V = fwm_padded(call->V);
    f.slabs = slabs_of(call->V);
    f.slab_size = f.shape.ld * SLAB;
    f.longest = fwm_tiles(longest_sequence(call), CHUNK);
    f.keeps = f.longest * f.slabs * CHUNK * SLAB * sizeof(real) <= KEPT_BYTES;
    const bool share = call->n_sequences * call->H < (size_t)threads;
    f.outer = share ? 1 : threads;
    f.inner = share ? threads : 1;
    choose_segment(&f);
    f.stride = largest(bytes_of_thread(&f), one_token_scratch(call));
    return f;
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
