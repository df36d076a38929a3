/* A slab: W columns of the state of a head, ld x W, rows beyond K unused. In the family no column of the state depends
 * on another, so that a slab stays in the first-level cache from chunk to chunk, and slabs may run on different
 * threads. */
#ifndef FWM_KERNELS_RULES_FAMILY_SLAB_H
#define FWM_KERNELS_RULES_FAMILY_SLAB_H

#include "kernels/rules/family/chunk.h"

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

#define slab_forward_scratch FWM_NAME(slab_forward_scratch)
#define update_slab FWM_NAME(update_slab)
#define slab_forward FWM_NAME(slab_forward)
#define slab_backward_scratch FWM_NAME(slab_backward_scratch)
#define slab_backward FWM_NAME(slab_backward)

size_t slab_forward_scratch(const ChunkShape *); /* bytes */

/* The chunk at tokens t0 .. on a slab: from the state S0 before it to S after it, which may be the same array. The
 * values that are written are left in N (C x W). What the queries read is stored in the head's output, if the chunk has
 * queries. */
void slab_forward(const ValueHead *, size_t t0, const Chunk *, const Slab *, const real *S0, real *S, real *N,
                  void *scratch);

/* The last step of slab_forward alone: S from S0 and N. */
void update_slab(const Chunk *, const Slab *, const real *S0, const real *N, real *S);

size_t slab_backward_scratch(const ChunkShape *); /* bytes */

/* Backward of slab_forward. Given S0, the state before the chunk, N, and dS, the gradient of the state after it, which
 * becomes that of S0. The gradients of the written values are stored in the head's arrays, the slab's share of the
 * others in part, all of which is overwritten. */
void slab_backward(const ValueHead *, size_t t0, const Chunk *, const Slab *, const real *S0, const real *N, real *dS,
                   ChunkGradients *part, void *scratch);

#endif
