/* Training and evaluating a model. */
#ifndef FWM_RETRIEVAL_TRAIN_H
#define FWM_RETRIEVAL_TRAIN_H

#include "api/model.h"
#include "retrieval/stream.h"

#define FWM_STEPS_PER_EVALUATION 100

/* A callback that returns 0 lets the training go on; above 0 ends it; below 0 stops it, with an exception. */
typedef struct {
    void *context;
    int (*on_evaluation)(void *context, uint64_t step, const FwmRecall *found);
    int (*poll)(void *context, uint64_t step, double training_loss); /* about every 100 ms */
} FwmTrainCallbacks;

typedef enum { FWM_TRAIN_ENDED, FWM_TRAIN_STOPPED, FWM_TRAIN_NO_MEMORY } FwmTrainStatus;

/* AS_PUBLISHED finds a loss alone, a float32 number. */
typedef enum { FWM_AS_PUBLISHED, FWM_RECALL } FwmCriterion;

FwmTrainStatus fwm_train(FwmModel *model, FwmStream *stream, double lr, uint64_t max_steps, FwmCriterion criterion,
                         const FwmTrainCallbacks *callbacks);

/* One evaluation of the model on the stream's next sequences. 0, or -1 if memory is short. */
int fwm_evaluate(FwmModel *model, FwmStream *stream, FwmCriterion criterion, FwmRecall *found);

#endif
