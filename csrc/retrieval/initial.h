#ifndef FWM_RETRIEVAL_INITIAL_H
#define FWM_RETRIEVAL_INITIAL_H

#include "api/model.h"
#include "random/torch_cpu.h"

/* Draws the initial parameters from the generator, in the order of the published program; the generator goes on from
 * there. 0, or -1 when memory is short. */
int fwm_initial_parameters(FwmModel *model, FwmTorchCpu *generator);

#endif
