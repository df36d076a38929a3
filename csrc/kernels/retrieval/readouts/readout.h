/* Read-outs: the retrieval experiment's answers to one query after a whole sequence.
 *
 * A sequence writes L pairs (key features k_t, one-hot value e_{v_t}) into a fast weight memory W (N x p); one query q
 * reads y = W q. Because the values are one-hot, no read-out needs W to answer a single query, except fwm, for its
 * norm.
 *
 * A read-out is one file that defines a Readout: equation, fast forward, derivation, backward. The forward leaves in
 * the scratch what the backward needs. The backward returns the gradients of the keys tile by tile (at most FWM_TILE
 * tokens; each read-out has its own order of tiles), so that the feature map's backward finds them in the cache.
 *
 * How to add one: docs/architecture.md. */
#ifndef FWM_KERNELS_RETRIEVAL_READOUTS_READOUT_H
#define FWM_KERNELS_RETRIEVAL_READOUTS_READOUT_H

#include "api/kernels.h"
#include "kernels/base/real.h"

typedef struct {
    size_t length;         /* L */
    size_t n_values;       /* N */
    size_t features;       /* p */
    size_t ld;             /* p, padded: rows of keys and query are padded with zeros */
    const real *keys;      /* L x ld */
    const int32_t *values; /* L, each in 0..N-1 */
    const real *beta;      /* L; NULL for a read-out without it */
    const real *query;     /* ld */
    bool as_published;     /* overflows where the published program does (delta.c) */
} ReadoutSequence;

typedef struct {
    size_t start, count;
} TokenRange;

typedef struct {
    FwmReadoutInfo info;
    /* Subnormal features do not change the result, so the model may flush them to 0. FAVOR+'s are all subnormal where
     * |x| is large. */
    bool flushes_subnormals;
    /* A key of zeros changes neither an answer that is finite nor a gradient, so the model may leave its token out. */
    bool ignores_zeros;
    /* bytes of scratch for sequences of these sizes: for answer with ld_queries, or, if it is 0, for the others */
    size_t (*scratch)(size_t length, size_t n_values, size_t ld, size_t ld_queries);
    /* y (N) */
    void (*forward)(const ReadoutSequence *, void *scratch, real *y);
    /* After forward, with the same scratch: dy (N) is the gradient of y. Returns the number of tiles. */
    size_t (*backward_begin)(const ReadoutSequence *, void *scratch, const real *y, const real *dy);
    /* dkeys (count x ld) and, if the read-out uses beta, dbeta (count) of a tile; called for tiles 0, 1, 2, ... */
    TokenRange (*backward_tile)(const ReadoutSequence *, void *scratch, size_t tile, real *dkeys, real *dbeta);
    /* dquery (ld), after the last tile */
    void (*backward_end)(const ReadoutSequence *, void *scratch, real *dquery);
    /* The answers to many queries, the columns of `queries` (ld x ld_queries, padded): column by column of y
     * (N x ld_queries) what forward computes. sequence->query is not read. */
    void (*answer)(const ReadoutSequence *, void *scratch, const real *queries, size_t ld_queries, real *y);
} Readout;

/* What a W of zeros answers: the sum of 0 x, which is NaN if a number of the query x is not finite. */
static inline real answer_of_nothing(size_t n, const real *x)
{
    real total = 0;
    for (size_t i = 0; i < n; i++)
        total += 0 * x[i];
    return total;
}

#define readouts FWM_NAME(readouts)
#define info_of_readout FWM_NAME(info_of_readout)
#define readout_scratch FWM_NAME(readout_scratch)
#define readout_forward FWM_NAME(readout_forward)
#define readout_backward FWM_NAME(readout_backward)

extern const Readout *const readouts[]; /* NULL behind the last */

/* By the row of the table; NULL behind the last. */
const FwmReadoutInfo *info_of_readout(size_t row);

/* The passes of the operation; the call is an FwmReadoutCall. */
size_t readout_scratch(const void *call, int threads);
void readout_forward(const void *call, int threads, void *scratch);
void readout_backward(const void *call, int threads, void *scratch);

#endif
