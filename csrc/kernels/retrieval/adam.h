/* Adam, on the trained parameters. */
#ifndef FWM_KERNELS_RETRIEVAL_ADAM_H
#define FWM_KERNELS_RETRIEVAL_ADAM_H

#include "kernels/retrieval/step.h"

#define adam_step FWM_NAME(adam_step)
#define adam_update FWM_NAME(adam_update)
#define adam_update_range FWM_NAME(adam_update_range)
#define adam_tasks FWM_NAME(adam_tasks)
#define adam_task FWM_NAME(adam_task)

/* For step t, counted from 1. */
AdamStep adam_step(double lr, uint64_t t);
void adam_update(const AdamStep *a, size_t n, const real *g, real *p, real *m, real *v);

/* Updates n numbers of model->numbers, from `start` on, by their gradients. */
void adam_update_range(const Step *s, size_t start, size_t n);

/* The tasks that update biases and value rows. The big matrices are updated where their gradients are computed, in
 * projection.c. */
size_t adam_tasks(const Step *s);
void adam_task(void *context, size_t index, int thread);

#endif
