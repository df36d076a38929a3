/* The plain recurrence of the family: the reference, and the form for one token. */
#ifndef FWM_KERNELS_MEMORY_RECURRENT_H
#define FWM_KERNELS_MEMORY_RECURRENT_H

#include "kernels/memory/memory.h"

#define recurrent_serves FWM_NAME(recurrent_serves)
#define recurrent_forward_scratch FWM_NAME(recurrent_forward_scratch)
#define recurrent_backward_scratch FWM_NAME(recurrent_backward_scratch)
#define recurrent_forward FWM_NAME(recurrent_forward)
#define recurrent_backward FWM_NAME(recurrent_backward)

/* If the call asks for it, or no sequence has more than a token. */
bool recurrent_serves(const FwmMemory *);

size_t recurrent_forward_scratch(const FwmMemory *, int threads);
size_t recurrent_backward_scratch(const FwmMemory *, int threads);
void recurrent_forward(const FwmMemory *, int threads, void *scratch);
void recurrent_backward(const FwmMemory *, int threads, void *scratch);

#endif
