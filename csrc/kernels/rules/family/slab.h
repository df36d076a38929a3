/* A slab: W columns of the state of a head, ld x W, rows behind K unused. Columns of the state do not meet in the
 * family, so that a slab stays in the first-level cache from chunk to chunk, and slabs may run on different threads. */
#ifndef FWM_KERNELS_RULES_FAMILY_SLAB_H
#define FWM_KERNELS_RULES_FAMILY_SLAB_H

#include "kernels/rules/family/chunk.h"

enum { W = 32 };

typedef struct {
    size_t j0, n;  /* columns j0 .. j0 + n - 1 of V */
    size_t padded; /* n, padded: columns that are computed */
} Slab;

static inline size_t slabs_of(size_t V)
{
    return fwm_tiles(V, W);
}

static inline Slab slab_of(size_t V, size_t index)
{
    const size_t n = fwm_min(W, V - index * W);
    return (Slab){index * W, n, fwm_padded(n)};
}

/* state (K x V; NULL: zeros) -> S, and back */
static inline void load_slab(const Slab *slab, size_t K, size_t V, const real *state, real *S)
{
    load_columns(K, V, slab->n, W, state ? state + slab->j0 : NULL, S);
}

static inline void store_slab(const Slab *slab, size_t K, size_t V, const real *S, real *state)
{
    store_columns(K, V, slab->n, W, S, state + slab->j0);
}

#define slab_scratch FWM_NAME(slab_scratch)
#define update_state FWM_NAME(update_state)
#define write_chunk FWM_NAME(write_chunk)
#define slab_backward_scratch FWM_NAME(slab_backward_scratch)
#define write_chunk_backward FWM_NAME(write_chunk_backward)

size_t slab_scratch(const ChunkShape *); /* bytes for write_chunk */

/* The chunk at tokens t0 .. on a slab: from the state S0 before it to S behind it, which may be the same memory. N (C x
 * W) are the values written; what the queries read goes into the head's output, if the chunk has queries. */
void write_chunk(const Head *, size_t t0, const Chunk *, const Slab *, const real *S0, real *S, real *N, void *scratch);

/* Its last step alone, with N at hand. */
void update_state(const Chunk *, const Slab *, const real *S0, const real *N, real *S);

size_t slab_backward_scratch(const ChunkShape *); /* bytes */

/* Its backward: S0, the state before the chunk, N, and dS, the gradient of the state behind it, which becomes that of
 * S0. The gradients of the written values go into the head's arrays, the slab's share of the others into part, all of
 * it. */
void write_chunk_backward(const Head *, size_t t0, const Chunk *, const Slab *, const real *S0, const real *N, real *dS,
                          ChunkGradients *part, void *scratch);

#endif
