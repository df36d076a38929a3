/* The sequences of a pass through a feature map and a read-out: from the projections to y and the losses, and (unless
 * LOSS_ONLY) back to the gradients of the projections. */
#ifndef FWM_KERNELS_RETRIEVAL_MAPPED_H
#define FWM_KERNELS_RETRIEVAL_MAPPED_H

#include "kernels/retrieval/step.h"

#define mapped_attention FWM_NAME(mapped_attention)
#define mapped_scratch FWM_NAME(mapped_scratch)

void mapped_attention(Step *s);
size_t mapped_scratch(const FwmModel *model); /* bytes of a thread */

#endif
