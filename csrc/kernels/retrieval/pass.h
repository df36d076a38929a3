/* A pass of the model from end to end: what the table of kernels offers. */
#ifndef FWM_KERNELS_RETRIEVAL_PASS_H
#define FWM_KERNELS_RETRIEVAL_PASS_H

#include "api/model.h"
#include "kernels/base/real.h"

#define model_activations FWM_NAME(model_activations)
#define model_scratch FWM_NAME(model_scratch)
#define model_loss FWM_NAME(model_loss)
#define model_gradients FWM_NAME(model_gradients)
#define model_step FWM_NAME(model_step)
#define model_read_out FWM_NAME(model_read_out)

/* Bytes shared by all threads, and bytes of each thread: enough for a pass and for an evaluation. */
size_t model_activations(const FwmModel *model);
size_t model_scratch(const FwmModel *model);

double model_loss(FwmModel *model, const FwmBatch *batch);
double model_gradients(FwmModel *model, const FwmBatch *batch); /* into model->gradients; returns the loss */
double model_step(FwmModel *model, const FwmBatch *batch, double lr);
void model_read_out(FwmModel *model, const FwmBatch *batch, void *y); /* n x N */

#endif
