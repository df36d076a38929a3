/* Parallel loops, and the number of threads they run on. */
#ifndef FWM_RUNTIME_THREADS_H
#define FWM_RUNTIME_THREADS_H

#include <stdbool.h>
#include <stddef.h>

/* Task `index` of a loop. thread, 0 .. threads - 1, says which part of the scratch is this thread's. */
typedef void (*FwmTask)(void *context, size_t index, int thread);

void fwm_threads_start(void); /* once, at import */
int fwm_num_threads(void);
void fwm_set_num_threads(int threads);  /* at least 1 */
void fwm_set_threads_here(int threads); /* for calls from this thread; 0: the number set for all */

/* Runs tasks 0 .. n_tasks - 1 on at most `threads` threads, in any order. What a task does must not depend on the
 * number of threads, so that results do not either. With one thread no parallel region is entered. */
void fwm_parallel_for(int threads, size_t n_tasks, FwmTask task, void *context);

/* The same for several loops whose tasks are independent of each other, with one barrier at the end, not one a loop. */
typedef struct {
    size_t n_tasks;
    FwmTask task;
} FwmLoop;

void fwm_parallel_loops(int threads, size_t n_loops, const FwmLoop *loops, void *context);

/* Sets whether the loops that this thread starts flush subnormal numbers to zero, on all their threads and nowhere else
 * (runtime/subnormals.h). Returns the setting before, so that the caller can restore it. */
bool fwm_loops_flush(bool flush);

/* Threads for a loop over so many numbers: one, if they are less work than waking a second thread. */
static inline int fwm_threads_for(size_t numbers, int threads)
{
    return numbers < 65536 ? 1 : threads;
}

#endif
