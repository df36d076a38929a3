/* x W + b for keys, values and queries, and back. */
#ifndef FWM_KERNELS_RETRIEVAL_PROJECTION_H
#define FWM_KERNELS_RETRIEVAL_PROJECTION_H

#include "kernels/retrieval/step.h"

#define project FWM_NAME(project)
#define weight_gradients FWM_NAME(weight_gradients)
#define embedding_gradients FWM_NAME(embedding_gradients)
#define embedding_scratch FWM_NAME(embedding_scratch)

void project(Step *s);
void weight_gradients(Step *s);
void embedding_gradients(Step *s);
size_t embedding_scratch(const FwmModel *model); /* bytes of a thread */

#endif
