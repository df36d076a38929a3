/* Update rules with their read-out, in the one-query form of the experiments.
 *
 * A sequence writes L pairs (key feature k_t, one-hot value e_{v_t}) into a fast weight memory W (N x p); one query q
 * reads y = W q. Because the values are one-hot, no rule needs W to answer one query, except through the norm in fwm.
 *
 * A rule is one file that defines a Readout: equation, fast forward, derivation, backward. The forward leaves in the
 * scratch what the backward needs. The backward hands out the gradients of the keys tile by tile (at most FWM_TILE
 * tokens, in an order of the rule's own), so that the feature map can take them while they are in the cache.
 *
 * A new rule is one file, a row in table.c, and a documented function in fwm_py/readouts.py. */
#ifndef FWM_KERNELS_RETRIEVAL_READOUTS_READOUT_H
#define FWM_KERNELS_RETRIEVAL_READOUTS_READOUT_H

#include "kernels/base/real.h"
#include "api/kernels.h"

typedef struct {
    size_t length;         /* L */
    size_t n_values;       /* N */
    size_t features;       /* p */
    size_t ld;             /* p, padded: rows of keys and query end in zeros */
    const real *keys;      /* L x ld */
    const int32_t *values; /* L, each in 0..N-1 */
    const real *beta;      /* L, or NULL for a rule without it */
    const real *query;     /* ld */
    bool as_published;     /* overflow where the published program does (delta.c) */
} Sequence;

typedef struct {
    size_t start, count;
} TokenRange;

typedef struct {
    FwmReadoutInfo info;
    /* Subnormal features decide nothing: the model may flush them to 0. FAVOR+'s are all subnormal where |x| is large.
     */
    bool flushes_subnormals;
    /* numbers of scratch for sequences of these sizes, for n_queries answered at once */
    size_t (*scratch)(size_t length, size_t n_values, size_t ld, size_t n_queries);
    /* y (N) */
    void (*forward)(const Sequence *, real *scratch, real *y);
    /* After forward, with its scratch: dy (N) is the gradient of y. Returns the number of tiles. */
    size_t (*backward_begin)(const Sequence *, real *scratch, const real *y, const real *dy);
    /* dkeys (count x ld) and dbeta (count, if the rule has beta) of the tile; tiles come in the order 0, 1, 2, ... */
    TokenRange (*backward_tile)(const Sequence *, real *scratch, size_t tile, real *dkeys, real *dbeta);
    /* dquery (ld), after the last tile */
    void (*backward_end)(const Sequence *, real *scratch, real *dquery);
    /* The answers to n_queries queries, given as columns (ld x ld_queries): y (N x ld_queries), column by column what
     * forward would give. ld_queries is padded; sequence->query is not read. */
    void (*answer)(const Sequence *, real *scratch, const real *queries, size_t ld_queries, real *y);
} Readout;

/* What a memory of zeros answers: 0 x, which is NaN where a number of the query is not finite. */
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

const FwmReadoutInfo *info_of_readout(size_t row);

/* The passes of the operation; the call is an FwmReadoutCall. */
size_t readout_scratch(const void *call, int threads);
void readout_forward(const void *call, int threads, void *scratch);
void readout_backward(const void *call, int threads, void *scratch);

#endif
