/* The projections of keys, values and queries, and their gradients. */
#ifndef FWM_KERNELS_RETRIEVAL_PROJECTION_H
#define FWM_KERNELS_RETRIEVAL_PROJECTION_H

#include "kernels/retrieval/step.h"

#define project FWM_NAME(project)
#define weight_gradients FWM_NAME(weight_gradients)
#define embedding_gradients FWM_NAME(embedding_gradients)
#define embedding_scratch FWM_NAME(embedding_scratch)

/* Projects the queries and, unless attention is by softmax, the keys; for a backward also transposes the weights. */
void project(Step *s);

/* The gradients of the weights and of the embedding. In an update Adam takes them, and all others as well. */
void weight_gradients(Step *s);
void embedding_gradients(Step *s);
size_t embedding_scratch(const FwmModel *model); /* bytes of a thread */

#endif
