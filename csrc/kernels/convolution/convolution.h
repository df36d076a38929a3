/* The causal convolution, a filter for each channel: what the table offers. */
#ifndef FWM_KERNELS_CONVOLUTION_H
#define FWM_KERNELS_CONVOLUTION_H

#include "kernels/base/real.h"
#include "kernels/kernels.h"

#define convolution_backward_scratch FWM_NAME(convolution_backward_scratch)
#define convolution_forward FWM_NAME(convolution_forward)
#define convolution_backward FWM_NAME(convolution_backward)

size_t convolution_backward_scratch(const FwmConvolution *c); /* bytes */
void convolution_forward(const FwmConvolution *c, int threads);
void convolution_backward(const FwmConvolution *c, int threads, void *scratch);

#endif
