/* Adam, on what a step has gradients of. */
#ifndef FWM_KERNELS_RETRIEVAL_ADAM_H
#define FWM_KERNELS_RETRIEVAL_ADAM_H

#include "kernels/retrieval/step.h"

#define adam_step FWM_NAME(adam_step)
#define adam_update FWM_NAME(adam_update)
#define adam_on FWM_NAME(adam_on)
#define adam_tasks FWM_NAME(adam_tasks)
#define adam_task FWM_NAME(adam_task)

AdamStep adam_step(double lr, uint64_t t);
void adam_update(const AdamStep *a, size_t n, const real *g, real *p, real *m, real *v);

/* Updates n numbers from `start` in model->numbers on, by their gradients. */
void adam_on(const Step *s, size_t start, size_t n);

/* The tasks that update biases and value rows; projection.c updates the big matrices where it makes their gradients. */
size_t adam_tasks(const Step *s);
void adam_task(void *context, size_t index, int thread);

#endif
