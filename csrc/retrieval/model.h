/* Allocating a model. */
#ifndef FWM_RETRIEVAL_MODEL_H
#define FWM_RETRIEVAL_MODEL_H

#include "api/model.h"

/* Lays out a model of these sizes and allocates it, all zeros. The caller sets n_keys, d, length, batch, map, argument,
 * readout, with_map and with_beta; the other sizes follow. 0, or -1 if memory is short; fwm_model_free may be called in
 * either case. */
int fwm_model_init(FwmModel *model, const FwmKernels *kernels, const FwmModelSizes *sizes);
void fwm_model_free(FwmModel *model);

/* Allocates scratch for the next call, on the current number of threads. 0, or -1 if memory is short. */
int fwm_model_reserve(FwmModel *model);

#endif
