/* Parallel loops on OpenMP, if the build has it; otherwise on one thread. */
#ifdef __linux__
#define _GNU_SOURCE
#endif
#include "runtime/threads.h"

#include <stdatomic.h>
#include <stdlib.h>
#ifdef __linux__
#include <sched.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#endif

#include "runtime/subnormals.h"

/* Read at a fixed distance from the thread's pointer, not by a call of the linker's function. */
#ifdef __linux__
#define THREAD_LOCAL _Thread_local __attribute__((tls_model("initial-exec")))
#else
#define THREAD_LOCAL _Thread_local
#endif

static atomic_int num_threads = 1;
static THREAD_LOCAL int threads_here; /* for calls from this thread; 0: num_threads */
static THREAD_LOCAL bool loops_flush;

#ifdef _OPENMP
/* libgomp hangs in a child that was forked after a parallel region, because fork does not copy the threads of its pool.
 * Such a child runs everything on one thread. */
static atomic_int after_fork = 0;

static void in_child(void)
{
    after_fork = 1;
}
#endif

/* The number of cores that this process may use, at most OMP_NUM_THREADS. */
static int default_threads(void)
{
    int threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#ifdef __linux__
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0 && CPU_COUNT(&allowed) < threads)
        threads = CPU_COUNT(&allowed);
#endif
#endif
    return threads < 1 ? 1 : threads;
}

void fwm_threads_start(void)
{
    num_threads = default_threads();
#ifdef _OPENMP
    static atomic_flag registered = ATOMIC_FLAG_INIT;
    if (!atomic_flag_test_and_set(&registered) && pthread_atfork(NULL, NULL, in_child) != 0)
        atomic_flag_clear(&registered);
#endif
}

int fwm_num_threads(void)
{
#ifdef _OPENMP
    return after_fork ? 1 : threads_here ? threads_here : num_threads;
#else
    return 1;
#endif
}

void fwm_set_num_threads(int threads)
{
    num_threads = threads < 1 ? 1 : threads;
}

void fwm_set_threads_here(int threads)
{
    threads_here = threads;
}

bool fwm_loops_flush(bool flush)
{
    const bool before = loops_flush;
    loops_flush = flush;
    return before;
}

void fwm_parallel_loops(int threads, size_t n_loops, const FwmLoop *loops, void *context)
{
    const bool flush = loops_flush;
    size_t most_tasks = 0;
    for (size_t i = 0; i < n_loops; i++)
        most_tasks = loops[i].n_tasks > most_tasks ? loops[i].n_tasks : most_tasks;
#ifdef _OPENMP
    if (threads > 1 && most_tasks > 1 && !after_fork) {
        /* static: a thread works on the same rows in every phase and every step, and so finds them in its cache */
#pragma omp parallel num_threads(threads)
        {
            const FwmSubnormals before = fwm_subnormals(flush);
            for (size_t i = 0; i < n_loops; i++) {
#pragma omp for schedule(static) nowait
                for (size_t t = 0; t < loops[i].n_tasks; t++)
                    loops[i].task(context, t, omp_get_thread_num());
            }
            fwm_restore_subnormals(before);
        }
        return;
    }
#endif
    (void)threads;
    const FwmSubnormals before = fwm_subnormals(flush);
    for (size_t i = 0; i < n_loops; i++)
        for (size_t t = 0; t < loops[i].n_tasks; t++)
            loops[i].task(context, t, 0);
    fwm_restore_subnormals(before);
}

void fwm_parallel_for(int threads, size_t n_tasks, FwmTask task, void *context)
{
    const FwmLoop loop = {n_tasks, task};
    fwm_parallel_loops(threads, 1, &loop, context);
}
