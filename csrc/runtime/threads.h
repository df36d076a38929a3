#ifndef FWM_RUNTIME_THREADS_H
#define FWM_RUNTIME_THREADS_H

#include <stdbool.h>
#include <stddef.h>

/* Task index of a loop; thread is 0 .. threads - 1 and says which scratch memory to use. */
typedef void (*FwmTask)(void *context, size_t index, int thread);

void fwm_threads_start(void); /* once, at import */
int fwm_num_threads(void);
void fwm_set_num_threads(int threads);  /* at least 1 */
void fwm_set_threads_here(int threads); /* for calls from this thread, or 0: as set for all */

/* Runs task 0 .. n_tasks - 1 on at most this many threads, in any order. Tasks are cut without regard to the number of
 * threads, so results do not depend on it. One thread enters no parallel region. */
void fwm_parallel_for(int threads, size_t n_tasks, FwmTask task, void *context);

/* The same for several loops whose tasks do not depend on each other: one wait at the end instead of one for each loop.
 */
typedef struct {
    size_t n_tasks;
    FwmTask task;
} FwmLoop;

void fwm_parallel_loops(int threads, size_t n_loops, const FwmLoop *loops, void *context);

/* Whether the loops that this thread starts flush subnormal numbers to zero, on all their threads and nowhere else.
 * Returns what was so before, to be set again. */
bool fwm_loops_flush(bool flush);

/* Threads for a loop over so many numbers: one, where they are less work than it takes to wake another. */
static inline int fwm_threads_for(size_t numbers, int threads)
{
    return numbers < 65536 ? 1 : threads;
}

#endif
