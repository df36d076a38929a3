/* How many threads a training step should use at this moment.
 *
 * Threads that wait for each other at barriers are slow where another program keeps a core busy: a 2-thread step of 2
 * ms can take 24. The numbers do not depend on the number of threads, so the loop is free to try: it takes the time of
 * a few steps on one thread and of a few on all, goes on with the faster, and asks again from time to time. */
#ifndef FWM_RETRIEVAL_PACE_H
#define FWM_RETRIEVAL_PACE_H

typedef struct {
    int most;          /* threads allowed */
    int all;           /* 1: steps run on all of them, 0: on one */
    double seconds[2]; /* of a step on one thread, on all, when last measured; 0: never */
    double step_start;
    double window; /* seconds of the steps measured now */
    int window_steps;
    double next_trial; /* when to ask again, and the distance to the time after that */
    double interval;
} Pace;

double fwm_seconds(void); /* a clock */

Pace fwm_pace_start(int threads);
int fwm_pace_threads(Pace *pace);      /* before a step: on how many threads to run it */
double fwm_pace_step_done(Pace *pace); /* after it; returns the time */

#endif
