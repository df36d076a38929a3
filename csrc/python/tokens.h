/* Arrays of tokens (B, T, ..) that a kernel reads where they stand: contiguous, or a part of each token of a larger
 * array, as queries, keys and values are that come from one projection. */
#ifndef FWM_PYTHON_TOKENS_H
#define FWM_PYTHON_TOKENS_H

#include "api/kernels.h"
#include "python/numpy_api.h"

/* Whether it is such an array, of this type, or of float32 or float64 where the type is 0. */
bool fwm_can_stay(PyArrayObject *array, int type);

FwmTokens fwm_tokens_of(PyArrayObject *array);

#endif
