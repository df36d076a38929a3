/* The evaluations of the model. */
#ifndef FWM_KERNELS_RETRIEVAL_EVALUATION_H
#define FWM_KERNELS_RETRIEVAL_EVALUATION_H

#include "kernels/retrieval/step.h"

#define model_evaluate FWM_NAME(model_evaluate)
#define model_recall FWM_NAME(model_recall)
#define evaluation_activations FWM_NAME(evaluation_activations)
#define evaluation_scratch FWM_NAME(evaluation_scratch)

float model_evaluate(FwmModel *model, const FwmEvaluation *evaluation); /* as published */
void model_recall(FwmModel *model, const FwmEvaluation *evaluation, FwmRecall *recall);

/* Bytes shared by all threads, and bytes of each thread. */
size_t evaluation_activations(const FwmModel *model);
size_t evaluation_scratch(const FwmModel *model);

#endif
