/* The number of threads for a training step, chosen by measurement.
 *
 * Threads that wait for each other at barriers are slow if another program keeps a core busy: a step of 2 ms on 2
 * threads can take 24 ms. Results do not depend on the number of threads, so the training loop is free to try: it
 * measures a few steps on one thread and a few on all, continues with the faster, and measures again now and then. */
#ifndef FWM_RETRIEVAL_PACE_H
#define FWM_RETRIEVAL_PACE_H

typedef struct {
    int most;          /* threads allowed */
    int all;           /* 1: steps run on all of them; 0: on one */
    double seconds[2]; /* of a step on one thread and on all, when last measured; 0: never */
    double step_start;
    double window; /* seconds of the steps in the current window of measurement */
    int window_steps;
    double next_trial; /* when to measure the other way again */
    double interval;   /* from that trial to the next one */
} FwmPace;

double fwm_seconds(void); /* a monotonic clock */

FwmPace fwm_pace_start(int threads);
int fwm_pace_threads(FwmPace *pace);      /* before a step: on how many threads to run it */
double fwm_pace_step_done(FwmPace *pace); /* after it; returns the time */

#endif
