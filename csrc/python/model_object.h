/* The extension type Model, between its methods (bind_model.c) and its training (bind_train.c). */
#ifndef FWM_PYTHON_MODEL_OBJECT_H
#define FWM_PYTHON_MODEL_OBJECT_H

#include <stdatomic.h>

#include "api/model.h"
#include "python/numpy_api.h"
#include "retrieval/stream.h"

typedef struct {
    PyObject_HEAD
    FwmModel model;
    int type; /* NPY_FLOAT or NPY_DOUBLE */
    atomic_bool busy;
    unsigned long thread;         /* that has claimed it */
    bool in_callback;             /* of its training */
    bool nested;                  /* a call of that callback reads */
    FwmBlockSource source_before; /* where the training's draws go on after that call */
} FwmModelObject;

/* What a call does to the model. */
typedef enum { FWM_READS, FWM_CHANGES } FwmModelUse;

/* Claims the model for a call and makes room for it; 0, or -1 with an exception. */
int fwm_model_claim(FwmModelObject *self, FwmModelUse use);
void fwm_model_release(FwmModelObject *self);

/* The stream, claimed, if it fits the model; NULL with an exception. */
FwmStream *fwm_model_claim_stream(const FwmModelObject *self, PyObject *given);

/* Whether this is a Model. */
bool fwm_is_model(PyObject *object);

#endif
