/* The softmax over a sequence's scores, shared by the read-out (softmax.c) and by the model, which computes scores
 * without projecting a key (retrieval/softmax.c). */
#ifndef FWM_KERNELS_RETRIEVAL_READOUTS_SOFTMAX_H
#define FWM_KERNELS_RETRIEVAL_READOUTS_SOFTMAX_H

#include "kernels/base/real.h"

#define softmax_forward FWM_NAME(softmax_forward)
#define softmax_backward FWM_NAME(softmax_backward)

/* scores (L) become weights (L); y[n] = sum of the weights where v_t = n. */
void softmax_forward(size_t length, size_t n_values, const int32_t *values, real *scores, real *y);

/* weights (L) become the gradients of the scores: weights_t (dy[v_t] - dy . y). */
void softmax_backward(size_t length, size_t n_values, const int32_t *values, const real *y, const real *dy,
                      real *weights);

#endif
