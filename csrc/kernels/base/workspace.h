/* Dividing a piece of memory into arrays. Addresses are counted as integers, so that the same code can size memory that
 * is not there yet: start from 0, and where it ends is how much is needed. */
#ifndef FWM_KERNELS_WORKSPACE_H
#define FWM_KERNELS_WORKSPACE_H

#include <stddef.h>
#include <stdint.h>

/* The next array, of so many bytes, on a cache line. */
static inline void *take(uintptr_t *next, size_t bytes)
{
    void *start = (void *)*next;
    *next += (bytes + 63) / 64 * 64;
    return start;
}

#endif
