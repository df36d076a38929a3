/* The sequences of a pass, by softmax attention: from the projections to y and the losses and, unless LOSS_ONLY, back
 * to the gradients of the projections. */
#ifndef FWM_KERNELS_RETRIEVAL_SOFTMAX_H
#define FWM_KERNELS_RETRIEVAL_SOFTMAX_H

#include "kernels/retrieval/step.h"

#define softmax_sequences FWM_NAME(softmax_sequences)
#define softmax_scratch FWM_NAME(softmax_scratch)

void softmax_sequences(Step *s);
size_t softmax_scratch(const FwmModel *model); /* bytes of a thread */

#endif
