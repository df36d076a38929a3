/* What a backward of the family keeps, and where: heads of a task, segments, checkpoints, scratch. */
#ifndef FWM_KERNELS_RULES_FAMILY_BACKWARD_SCRATCH_H
#define FWM_KERNELS_RULES_FAMILY_BACKWARD_SCRATCH_H

#include "kernels/base/arena.h"
#include "kernels/rules/family/slab.h"

enum { MOST_HEADS = 8 }; /* of a task */

typedef struct {
    const FwmRuleCall *call;
    FamilyShape shape, writing; /* with the queries, and without */
    size_t slabs, slab_size;    /* numbers of a slab */
    size_t ld_V;                /* V, padded */
    size_t heads;               /* of a task: value heads of a key head */
    size_t longest, segment;    /* chunks of the longest sequence, of a segment */
    size_t every;               /* chunks from one checkpoint to the next: 1 or a segment */
    bool keeps;                 /* whether the values that the first pass writes are kept; else they are recomputed */
    int outer, inner;           /* threads over key heads, and threads within a head */
    char *scratch;
    size_t stride;
} FamilyBackward;

/* What stays of a head from segment to segment. */
typedef struct {
    real *checkpoints; /* (longest / every + 1) x slabs x slab_size */
    real *N;           /* a segment (all, if kept) x slabs x C x W */
    real *dS;          /* slabs x slab_size */
    real *dz;          /* ld */
} HeadStates;

typedef struct {
    HeadStates heads[MOST_HEADS];
    real *z0;               /* (longest + 1) x ld: the sum of keys before each chunk, with normalize */
    Chunk *chunks;          /* a segment */
    Span *spans;            /* a segment, without its queries */
    real *u;                /* a segment's tokens x ld_V */
    real *S0;               /* (a segment + 1) x slabs x slab_size, unless there is a checkpoint before every chunk */
    real *rows;             /* the segment's tokens gathered, inputs and gradients: unless threads share it */
    ChunkGradients *shares; /* of a chunk; or, if threads share the segment, of its chunks x slabs */
    char *thread_scratch;
    size_t thread_stride;
} FamilyBackwardScratch;

#define backward_of FWM_NAME(backward_of)
#define take_backward_scratch FWM_NAME(take_backward_scratch)

/* Chooses for a call, on so many threads. Its stride is that of a task's scratch, or of one_token_scratch. */
FamilyBackward backward_of(const FwmRuleCall *, int threads, void *scratch);

/* The scratch of a task. */
FamilyBackwardScratch take_backward_scratch(const FamilyBackward *, Arena *arena);

#endif
