/* New pages cost: clearing the 10 MB of a backward can take as long as the backward. So the last memory that was given
 * back is kept for the next call, whichever thread makes it, unless it is very large. */
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
#define MOST_KEPT ((size_t)64 << 20) /* bytes */

/* In front of the memory that is handed out. */
typedef union {
    size_t bytes; /* of what is handed out */
    char space[ALIGNMENT];
} Block;

static _Atomic(Block *) kept;

static Block *new_block(size_t bytes)
{
    const size_t all = sizeof(Block) + bytes;
    const bool large = all >= 2 * HUGE_PAGE;
    const size_t alignment = large ? HUGE_PAGE : ALIGNMENT, rounded = (all + alignment - 1) / alignment * alignment;
    Block *block = aligned_alloc(alignment, rounded);
#ifdef MADV_HUGEPAGE
    if (block && large)
        madvise(block, rounded, MADV_HUGEPAGE); /* a wish: without it, small pages */
#endif
    if (block)
        block->bytes = rounded - sizeof(Block);
    return block;
}

void *fwm_scratch(size_t bytes)
{
    if (bytes > PTRDIFF_MAX - 2 * HUGE_PAGE)
        return NULL;
    Block *block = atomic_exchange(&kept, NULL);
    if (!block || block->bytes < bytes) {
        free(block);
        block = new_block(bytes);
    }
    return block ? (void *)(block + 1) : NULL;
}

void fwm_release_scratch(void *scratch)
{
    Block *block = scratch ? (Block *)scratch - 1 : NULL;
    if (block && block->bytes <= MOST_KEPT)
        block = atomic_exchange(&kept, block);
    free(block);
}
