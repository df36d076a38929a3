/* See backward_scratch.h and docs/mathematics/rules.md. */
#include "kernels/rules/family/backward_scratch.h"

#include <string.h>

#include "kernels/rules/family/recurrent.h"
#include "kernels/rules/family/rows.h"

#define SHORTEST_SEGMENT (SPAN / CHUNK) /* chunks: with their states they fit the second-level cache */
/* Of a task; with more, segments get longer, as long as that saves memory. */
#define CHECKPOINT_BYTES ((size_t)12 << 20)
#define KEPT_BYTES ((size_t)17 << 20) /* of a task's written values; with more, they are recomputed */

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
    for (size_t i = 0; i < f->heads; i++) {
        w.heads[i].checkpoints = take_bytes(arena, (fwm_tiles(f->longest, f->every) + 1) * f->slabs * slab);
        w.heads[i].N = take(arena, (f->keeps ? segments : 1) * f->segment * f->slabs * CHUNK * SLAB);
        w.heads[i].dS = take_bytes(arena, f->slabs * slab);
        w.heads[i].dz = take(arena, ld);
    }
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
    w.rows = take(arena, f->inner > 1 ? 0 : f->segment * CHUNK * numbers_of_token(f->call));
    w.shares = take_all_gradients(f, shares_of(f), has_memory, arena);
    w.thread_stride = largest(chunk_backward_scratch(&f->shape), slab_backward_scratch(&f->shape));
    w.thread_stride = (w.thread_stride + 63) / 64 * 64;
    w.thread_scratch = take_bytes(arena, w.thread_stride * (size_t)f->inner);
    return w;
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

FamilyBackwardScratch take_backward_scratch(const FamilyBackward *f, Arena *arena)
{
    const FamilyBackwardScratch w = take_scratch(f, arena);
    clear_padding(f, &w);
    return w;
}

static size_t bytes_of_thread(const FamilyBackward *f)
{
    Arena arena = {0};
    take_scratch(f, &arena);
    return arena.next;
}

/* How many heads a task takes at a time, and how long its segments are. As many heads as there is memory for with
 * the shortest segments, because they share keys; no state is made twice where there is memory for one before every
 * chunk. With one head, longer segments need fewer checkpoints between them, and more states within: the sum grows with
 * the square root of T. The bits depend on the choice, so the number of threads does not enter. */
static void choose_heads_and_segment(FamilyBackward *f)
{
    const size_t state = f->slabs * f->slab_size * sizeof(real), written = f->slabs * CHUNK * SLAB * sizeof(real);
    FamilyBackward alone = *f;
    alone.inner = 1;
    alone.segment = SHORTEST_SEGMENT;
    alone.heads = fwm_min(f->call->HV / f->call->H, MOST_HEADS);
    while (alone.heads > 1 && (fwm_tiles(f->longest, alone.segment) * alone.heads * state > CHECKPOINT_BYTES ||
                               f->longest * alone.heads * written > KEPT_BYTES))
        alone.heads--;
    alone.keeps = f->longest * alone.heads * written <= KEPT_BYTES;
    const bool keeps_states = f->longest * alone.heads * state <= CHECKPOINT_BYTES;
    alone.every = keeps_states ? 1 : alone.segment;
    while (!keeps_states && fwm_tiles(f->longest, alone.segment) > largest(2, CHECKPOINT_BYTES / state)) {
        FamilyBackward longer = alone;
        longer.every = longer.segment *= 2;
        if (bytes_of_thread(&longer) >= bytes_of_thread(&alone))
            break;
        alone = longer;
    }
    alone.inner = f->inner;
    *f = alone;
}

FamilyBackward backward_of(const FwmRuleCall *call, int threads, void *scratch)
{
    FamilyBackward f = {
        .call = call, .shape = family_shape(call, true), .writing = family_shape(call, false), .scratch = scratch};
    f.ld_V = fwm_padded(call->V);
    f.slabs = slabs_of(call->V);
    f.slab_size = f.shape.ld * SLAB;
    f.longest = fwm_tiles(longest_sequence(call), CHUNK);
    const bool share = call->n_sequences * call->H < (size_t)threads;
    f.outer = share ? 1 : threads;
    f.inner = share ? threads : 1;
    choose_heads_and_segment(&f);
    f.stride = largest(bytes_of_thread(&f), one_token_scratch(call));
    return f;
}
