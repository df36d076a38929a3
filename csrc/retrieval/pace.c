#include "retrieval/pace.h"

#include <time.h>

#define STEPS_IN_WINDOW 4
#define FIRST_INTERVAL 0.2 /* seconds; doubled as long as the choice stays the same */
#define LAST_INTERVAL 3.2
#define RUN_FOR_EACH_TRIAL 50 /* a trial takes at most a 50th of the time */

double fwm_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

FwmPace fwm_pace_start(int threads)
{
    return (FwmPace){.most = threads, .all = threads > 1, .interval = FIRST_INTERVAL};
}

int fwm_pace_threads(FwmPace *pace)
{
    pace->step_start = fwm_seconds();
    return pace->all ? pace->most : 1;
}

/* After a full window: chooses how to run the next one. */
static void choose(FwmPace *pace, double now)
{
    const int here = pace->all, other = !here;
    const int slower = pace->seconds[here] > pace->seconds[other];
    if (pace->seconds[other] == 0 || slower) {
        pace->all = other;
        if (slower && now > pace->next_trial) /* the trial was faster, or the load of the machine has changed */
            pace->interval = FIRST_INTERVAL;
    } else if (now > pace->next_trial) {
        const double least = RUN_FOR_EACH_TRIAL * STEPS_IN_WINDOW * pace->seconds[other];
        pace->all = other;
        pace->next_trial = now + (pace->interval > least ? pace->interval : least);
        pace->interval = pace->interval < LAST_INTERVAL ? 2 * pace->interval : LAST_INTERVAL;
    }
}

double fwm_pace_step_done(FwmPace *pace)
{
    const double now = fwm_seconds();
    pace->window += now - pace->step_start;
    if (++pace->window_steps == STEPS_IN_WINDOW) {
        pace->seconds[pace->all] = pace->window / STEPS_IN_WINDOW;
        pace->window = 0;
        pace->window_steps = 0;
        if (pace->most > 1)
            choose(pace, now);
    }
    return now;
}
