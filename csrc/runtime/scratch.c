/* Fresh pages are expensive: the system clears them, and clearing the 10 MB of a backward can take as long as the
 * backward. So the block that was released last is kept for the next call, of whichever thread, unless it is very
 * large. */
#include "runtime/scratch.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define ALIGNMENT 64
#define HUGE_PAGE ((size_t)2 << 20)
#define MOST_BYTES_KEPT ((size_t)64 << 20)

/* The header of a block; the scratch follows it. */
typedef union {
    size_t bytes; /* of the scratch */
    char space[ALIGNMENT];
} ScratchBlock;

static _Atomic(ScratchBlock *) kept;

static ScratchBlock *new_block(size_t bytes)
{
    const size_t all = sizeof(ScratchBlock) + bytes;
    const bool large = all >= 2 * HUGE_PAGE;
    const size_t alignment = large ? HUGE_PAGE : ALIGNMENT, rounded = (all + alignment - 1) / alignment * alignment;
    ScratchBlock *block = aligned_alloc(alignment, rounded);
#ifdef MADV_HUGEPAGE
    if (block && large)
        madvise(block, rounded, MADV_HUGEPAGE); /* only advice: if it is refused, the pages are small */
#endif
    if (block)
        block->bytes = rounded - sizeof(ScratchBlock);
    return block;
}

void *fwm_scratch(size_t bytes)
{
    if (bytes > PTRDIFF_MAX - 2 * HUGE_PAGE)
        return NULL;
    ScratchBlock *block = atomic_exchange(&kept, NULL);
    if (!block || block->bytes < bytes) {
        free(block);
        block = new_block(bytes);
    }
    return block ? (void *)(block + 1) : NULL;
}

void fwm_release_scratch(void *scratch)
{
    ScratchBlock *block = scratch ? (ScratchBlock *)scratch - 1 : NULL;
    if (block && block->bytes <= MOST_BYTES_KEPT)
        block = atomic_exchange(&kept, block);
    free(block);
}
