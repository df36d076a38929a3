/* What the table of kernels takes from the model. */
#ifndef FWM_KERNELS_MODEL_ENTRY_H
#define FWM_KERNELS_MODEL_ENTRY_H

#include "kernels/base/real.h"
#include "kernels/model/model.h"

#define model_activations FWM_NAME(model_activations)
#define model_scratch FWM_NAME(model_scratch)
#define model_loss FWM_NAME(model_loss)
#define model_gradients FWM_NAME(model_gradients)
#define model_step FWM_NAME(model_step)
#define model_read_out FWM_NAME(model_read_out)
#define model_evaluate FWM_NAME(model_evaluate)

size_t model_activations(const FwmModel *model);
size_t model_scratch(const FwmModel *model);
double model_loss(FwmModel *model, const FwmBatch *batch);
double model_gradients(FwmModel *model, const FwmBatch *batch);
double model_step(FwmModel *model, const FwmBatch *batch, double lr);
void model_read_out(FwmModel *model, const FwmBatch *batch, void *y);
float model_evaluate(FwmModel *model, const FwmEvaluation *evaluation);

#endif
