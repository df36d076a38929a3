/* An arena lays out scratch. One layout function takes its arrays from the arena, one after the other: run on an arena
 * at an address it says where the arrays lie, run on an empty arena, {0}, it counts the bytes they need. */
#ifndef FWM_KERNELS_BASE_ARENA_H
#define FWM_KERNELS_BASE_ARENA_H

#include "kernels/base/real.h"

/* Addresses are integers here, because an empty arena counts from 0. */
typedef struct {
    uintptr_t next; /* where the next array starts; of an empty arena, the bytes taken so far */
} Arena;

static inline Arena arena_at(void *scratch)
{
    return (Arena){(uintptr_t)scratch};
}

/* The next array, aligned to a cache line. */
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

/* The arena of one thread, where scratch holds `bytes` bytes for each thread. */
static inline Arena arena_of_thread(void *scratch, int thread, size_t bytes)
{
    return arena_at((char *)scratch + (size_t)thread * bytes);
}

#endif
