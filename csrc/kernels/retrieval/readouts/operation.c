/* The operation of all read-outs, on packed arrays: a task is a sequence, copied into padded rows.
 *
 * Backward: nothing is saved; the forward is recomputed. */
#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/base/vector.h"
#include "kernels/retrieval/readouts/readout.h"
#include "runtime/threads.h"

/* A padded sequence on its way through a read-out: the scratch of a thread. */
typedef struct {
    real *keys, *query;           /* L x ld, ld */
    real *dkeys, *dbeta, *dquery; /* TILE x ld, TILE, ld */
    real *y;                      /* n_values */
    void *readout_scratch;
} PaddedSequence;

/* A call with what its tasks share. */
typedef struct {
    const FwmReadoutCall *c;
    const Readout *readout;
    size_t ld;
    void *scratch;
    size_t thread_bytes; /* of the scratch of a thread */
} ReadoutContext;

static PaddedSequence take_sequence(const ReadoutContext *r, Arena *arena)
{
    const FwmReadoutCall *c = r->c;
    PaddedSequence w;
    w.keys = take(arena, c->L * r->ld);
    w.query = take(arena, r->ld);
    w.dkeys = take(arena, FWM_TILE * r->ld);
    w.dbeta = take(arena, FWM_TILE);
    w.dquery = take(arena, r->ld);
    w.y = take(arena, c->n_values);
    w.readout_scratch = take_bytes(arena, r->readout->scratch(c->L, c->n_values, r->ld, 0));
    return w;
}

static ReadoutContext context_of(const FwmReadoutCall *c, void *scratch)
{
    ReadoutContext r = {.c = c, .readout = readouts[c->readout], .ld = fwm_padded(c->p), .scratch = scratch};
    Arena arena = {0};
    take_sequence(&r, &arena);
    r.thread_bytes = arena.next;
    return r;
}

static ReadoutSequence sequence_of(const ReadoutContext *r, size_t b, const PaddedSequence *w)
{
    const FwmReadoutCall *c = r->c;
    pad_rows(c->L, (const real *)c->keys + b * c->L * c->p, c->p, w->keys, r->ld);
    pad_rows(1, (const real *)c->query + b * c->p, c->p, w->query, r->ld);
    return (ReadoutSequence){
        .length = c->L,
        .n_values = c->n_values,
        .features = c->p,
        .ld = r->ld,
        .keys = w->keys,
        .values = c->values + b * c->L,
        .beta = c->beta ? (const real *)c->beta + b * c->L : NULL,
        .query = w->query,
    };
}

static void forward_task(void *context, size_t b, int thread)
{
    const ReadoutContext *r = context;
    Arena arena = arena_of_thread(r->scratch, thread, r->thread_bytes);
    const PaddedSequence w = take_sequence(r, &arena);
    const ReadoutSequence s = sequence_of(r, b, &w);
    r->readout->forward(&s, w.readout_scratch, (real *)r->c->y + b * s.n_values);
}

static void backward_task(void *context, size_t b, int thread)
{
    const ReadoutContext *r = context;
    const FwmReadoutCall *c = r->c;
    Arena arena = arena_of_thread(r->scratch, thread, r->thread_bytes);
    const PaddedSequence w = take_sequence(r, &arena);
    const ReadoutSequence s = sequence_of(r, b, &w);
    const size_t first = b * c->L;
    r->readout->forward(&s, w.readout_scratch, w.y);
    const real *dy = (const real *)c->dy + b * c->n_values;
    const size_t tiles = r->readout->backward_begin(&s, w.readout_scratch, w.y, dy);
    for (size_t tile = 0; tile < tiles; tile++) {
        const TokenRange range = r->readout->backward_tile(&s, w.readout_scratch, tile, w.dkeys, w.dbeta);
        unpad_rows(range.count, w.dkeys, s.ld, (real *)c->dkeys + (first + range.start) * c->p, c->p);
        if (s.beta)
            memcpy((real *)c->dbeta + first + range.start, w.dbeta, range.count * sizeof(real));
    }
    r->readout->backward_end(&s, w.readout_scratch, w.dquery);
    memcpy((real *)c->dquery + b * c->p, w.dquery, c->p * sizeof(real));
}

size_t readout_scratch(const void *call, int threads)
{
    return context_of(call, NULL).thread_bytes * (size_t)threads;
}

void readout_forward(const void *call, int threads, void *scratch)
{
    ReadoutContext r = context_of(call, scratch);
    fwm_parallel_for(threads, r.c->B, forward_task, &r);
}

void readout_backward(const void *call, int threads, void *scratch)
{
    ReadoutContext r = context_of(call, scratch);
    fwm_parallel_for(threads, r.c->B, backward_task, &r);
}
