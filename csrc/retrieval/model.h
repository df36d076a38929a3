#ifndef FWM_RETRIEVAL_MODEL_H
#define FWM_RETRIEVAL_MODEL_H

#include "api/model.h"

/* Lays out a model of these sizes (n_keys, d, length, batch, map, argument, rule, with_map, with_beta are given, the
 * rest follows) and allocates it, all zeros. 0, or -1 when memory is short; fwm_model_free may be called either way. */
int fwm_model_init(FwmModel *model, const FwmKernels *kernels, const FwmModelSizes *sizes);
void fwm_model_free(FwmModel *model);

/* Makes room for the next call, on the number of threads of the moment. 0, or -1 when memory is short. */
int fwm_model_reserve(FwmModel *model);

#endif
