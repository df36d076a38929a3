/* The initial parameters of a model. */
#ifndef FWM_RETRIEVAL_INITIAL_H
#define FWM_RETRIEVAL_INITIAL_H

#include "api/model.h"
#include "random/torch_cpu.h"

/* Draws the initial parameters from the generator, in the order of the published program, and leaves the generator
 * after them. 0, or -1 if memory is short. */
int fwm_initial_parameters(FwmModel *model, FwmTorchCpu *generator);

#endif
