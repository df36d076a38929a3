/* A slab: W columns of the state of a head, ld x W, rows beyond K unused. In the family no column of the state depends
 * on another, so that a slab stays in the first-level cache from quad to quad and from chunk to chunk, and slabs may
 * run on different threads. */
#ifndef FWM_KERNELS_RULES_FAMILY_SLAB_H
#define FWM_KERNELS_RULES_FAMILY_SLAB_H

#include "kernels/rules/family/chunk.h"
#include "kernels/rules/family/span.h"

enum { SLAB = 32 }; /* columns: W in shapes and equations */

typedef struct {
    size_t j0, n;  /* columns j0 .. j0 + n - 1 of V */
    size_t padded; /* n, padded: columns that are computed */
} Slab;

static inline size_t slabs_of(size_t V)
{
    return fwm_tiles(V, SLAB);
}

static inline Slab slab_of(size_t V, size_t index)
{
    const size_t n = fwm_min(SLAB, V - index * SLAB);
    return (Slab){index * SLAB, n, fwm_padded(n)};
}

/* A state of the call (NULL: zeros) -> S, and back */
static inline void load_slab(const ValueHead *h, const Slab *slab, const real *state, real *S)
{
    load_columns(h, slab->j0, slab->n, SLAB, state, S);
}

static inline void store_slab(const ValueHead *h, const Slab *slab, const real *S, real *state)
{
    store_columns(h, slab->j0, slab->n, SLAB, S, state);
}

/* The rows of a span beside its keys, all columns of V. */
typedef struct {
    const real *u; /* SPAN rows: what is to be written, or, with factors (SPAN; NULL: 1), values to be multiplied */
    size_t ld_u;
    const real *factors;
    real *o; /* R of them: what the queries read; NULL without queries */
    size_t ld_o, per_query;
} SpanRows;

#define quad_forward FWM_NAME(quad_forward)
#define fold_slab FWM_NAME(fold_slab)
#define chunk_of_sums_forward FWM_NAME(chunk_of_sums_forward)
#define update_slab FWM_NAME(update_slab)
#define slab_backward_scratch FWM_NAME(slab_backward_scratch)
#define slab_backward FWM_NAME(slab_backward)

/* Quad i of a span on a slab: from the state S0 before it to S after it, which may be the same array. N (QUAD x W;
 * NULL: not wanted) gets the values that are written. */
void quad_forward(const Span *, size_t i, const SpanRows *, const Slab *, const real *S0, real *S, real *N);

/* The state S after quad i, as it is when it is folded there: S itself, or folded (ld x W), made from it. */
const real *fold_slab(const Span *, size_t i, const real *S, real *folded);

/* Chunk i of a span of a rule that does not erase, on a slab, in place: u is what is written. */
void chunk_of_sums_forward(const Chunk *, size_t i, const SpanRows *, const Slab *, real *S);

/* The state S after a chunk, from S0, that before it, and N (C rows of ld numbers), the values that are written in it.
 */
void update_slab(const Chunk *, const Slab *, const real *S0, const real *N, size_t ld, real *S);

size_t slab_backward_scratch(const FamilyShape *); /* bytes */

/* Backward of a chunk on a slab. Given S0, the state before the chunk, N, and dS, the gradient of the state after it,
 * which becomes that of S0. The gradients of the written values are stored in the head's arrays. The slab's share of
 * the others is added to sums, or stored there if it is the first. */
void slab_backward(const ValueHead *, size_t t0, const Chunk *, const Slab *, const real *S0, const real *N, real *dS,
                   bool first, ChunkGradients *sums, void *scratch);

#endif
