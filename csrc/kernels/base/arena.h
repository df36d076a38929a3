/* Laying out scratch: one function takes its arrays from an arena, and so says where they lie and, on an arena without
 * memory, how many bytes they need. */
#ifndef FWM_KERNELS_BASE_ARENA_H
#define FWM_KERNELS_BASE_ARENA_H

#include "kernels/base/real.h"

/* Addresses are counted as integers: an arena that starts from 0 has no memory. */
typedef struct {
    uintptr_t next; /* in the end, of one without memory: the bytes that are needed */
} Arena;

static inline Arena arena_at(void *memory)
{
    return (Arena){(uintptr_t)memory};
}

/* The next array, on a cache line. */
static inline void *take_bytes(Arena *arena, size_t bytes)
{
    void *start = (void *)arena->next;
    arena->next += (bytes + 63) / 64 * 64;
    return start;
}

static inline real *take(Arena *arena, size_t numbers)
{
    return take_bytes(arena, numbers * sizeof(real));
}

/* The scratch of a thread, of so many bytes each. */
static inline Arena arena_of_thread(void *scratch, int thread, size_t bytes)
{
    return arena_at((char *)scratch + (size_t)thread * bytes);
}

#endif
