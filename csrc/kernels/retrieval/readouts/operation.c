/* The operation of all read-outs, on packed arrays: a task is a sequence, copied into padded rows.
 *
 * Backward: nothing is saved; the forward is made again. */
#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/base/vector.h"
#include "kernels/retrieval/readouts/readout.h"
#include "runtime/threads.h"

/* A thread's sequence, padded, on its way through a read-out. */
typedef struct {
    real *keys, *query;           /* L x ld, ld */
    real *dkeys, *dbeta, *dquery; /* TILE x ld, TILE, ld */
    real *y;                      /* n_values */
    real *readout_scratch;
} PaddedSequence;

typedef struct {
    const FwmReadoutCall *c;
    const Readout *readout;
    size_t ld;
    void *scratch;
    size_t stride; /* bytes of a thread's scratch */
} ReadoutWork;

static PaddedSequence take_sequence(const ReadoutWork *work, Arena *arena)
{
    const FwmReadoutCall *c = work->c;
    PaddedSequence padded = {.keys = take(arena, c->L * work->ld), .query = take(arena, work->ld)};
    padded.dkeys = take(arena, FWM_TILE * work->ld);
    padded.dbeta = take(arena, FWM_TILE);
    padded.dquery = take(arena, work->ld);
    padded.y = take(arena, c->n_values);
    padded.readout_scratch = take(arena, work->readout->scratch(c->L, c->n_values, work->ld, 1));
    return padded;
}

static ReadoutWork work_of(const FwmReadoutCall *c, void *scratch)
{
    ReadoutWork work = {.c = c, .readout = readouts[c->readout], .ld = fwm_padded(c->p), .scratch = scratch};
    Arena arena = {0};
    take_sequence(&work, &arena);
    work.stride = arena.next;
    return work;
}

static Sequence sequence_of(const ReadoutWork *work, size_t b, const PaddedSequence *padded)
{
    const FwmReadoutCall *c = work->c;
    pad_rows(c->L, (const real *)c->keys + b * c->L * c->p, c->p, padded->keys, work->ld);
    pad_rows(1, (const real *)c->query + b * c->p, c->p, padded->query, work->ld);
    return (Sequence){
        .length = c->L,
        .n_values = c->n_values,
        .features = c->p,
        .ld = work->ld,
        .keys = padded->keys,
        .values = c->values + b * c->L,
        .beta = c->beta ? (const real *)c->beta + b * c->L : NULL,
        .query = padded->query,
    };
}

static void forward_task(void *context, size_t b, int thread)
{
    const ReadoutWork *work = context;
    Arena arena = arena_of_thread(work->scratch, thread, work->stride);
    const PaddedSequence padded = take_sequence(work, &arena);
    const Sequence s = sequence_of(work, b, &padded);
    work->readout->forward(&s, padded.readout_scratch, (real *)work->c->y + b * s.n_values);
}

static void backward_task(void *context, size_t b, int thread)
{
    const ReadoutWork *work = context;
    const FwmReadoutCall *c = work->c;
    Arena arena = arena_of_thread(work->scratch, thread, work->stride);
    const PaddedSequence w = take_sequence(work, &arena);
    const Sequence s = sequence_of(work, b, &w);
    const size_t first = b * c->L;
    work->readout->forward(&s, w.readout_scratch, w.y);
    const real *dy = (const real *)c->dy + b * c->n_values;
    const size_t tiles = work->readout->backward_begin(&s, w.readout_scratch, w.y, dy);
    for (size_t tile = 0; tile < tiles; tile++) {
        const TokenRange range = work->readout->backward_tile(&s, w.readout_scratch, tile, w.dkeys, w.dbeta);
        unpad_rows(range.count, w.dkeys, s.ld, (real *)c->dkeys + (first + range.start) * c->p, c->p);
        if (s.beta)
            memcpy((real *)c->dbeta + first + range.start, w.dbeta, range.count * sizeof(real));
    }
    work->readout->backward_end(&s, w.readout_scratch, w.dquery);
    memcpy((real *)c->dquery + b * c->p, w.dquery, c->p * sizeof(real));
}

size_t readout_scratch(const void *call, int threads)
{
    return work_of(call, NULL).stride * (size_t)threads;
}

void readout_forward(const void *call, int threads, void *scratch)
{
    ReadoutWork work = work_of(call, scratch);
    fwm_parallel_for(threads, work.c->B, forward_task, &work);
}

void readout_backward(const void *call, int threads, void *scratch)
{
    ReadoutWork work = work_of(call, scratch);
    fwm_parallel_for(threads, work.c->B, backward_task, &work);
}
