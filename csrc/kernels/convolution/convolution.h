/* The causal convolution, a filter for each channel: what the table offers. */
#ifndef FWM_KERNELS_CONVOLUTION_CONVOLUTION_H
#define FWM_KERNELS_CONVOLUTION_CONVOLUTION_H

#include "api/kernels.h"
#include "kernels/base/real.h"

#define convolution_backward_scratch FWM_NAME(convolution_backward_scratch)
#define convolution_forward FWM_NAME(convolution_forward)
#define convolution_backward FWM_NAME(convolution_backward)
#define convolution_update_states FWM_NAME(convolution_update_states)

/* The passes of the operation; the call is an FwmConvolutionCall. The forward needs no scratch. */
void convolution_forward(const void *call, int threads, void *scratch);
size_t convolution_backward_scratch(const void *call, int threads);
void convolution_backward(const void *call, int threads, void *scratch);

/* A forward that changes the states of sequences in place; the call is an FwmConvolutionUpdateCall. */
void convolution_update_states(const void *call, int threads, void *scratch);

#endif
