/* The sequences of a pass, through a feature map and a read-out: from the projections to y and the losses and, unless
 * LOSS_ONLY, back to the gradients of the projections. */
#ifndef FWM_KERNELS_RETRIEVAL_MAPPED_H
#define FWM_KERNELS_RETRIEVAL_MAPPED_H

#include "kernels/retrieval/step.h"

#define mapped_sequences FWM_NAME(mapped_sequences)
#define mapped_scratch FWM_NAME(mapped_scratch)

void mapped_sequences(Step *s);
size_t mapped_scratch(const FwmModel *model); /* bytes of a thread */

#endif
