/* train: the loop, which calls back into Python. */
#include "python/bindings.h"
#include "python/objects.h"
#include "retrieval/train.h"

typedef struct {
    FwmModelObject *model;
    PyThreadState *state;
    PyObject *on_evaluation, *on_progress; /* or None */
} Callbacks;

/* With the GIL for as long as it takes: signals are looked for while `polls`. 0, or -1 with an exception. */
static int call(Callbacks *callbacks, bool polls, uint64_t step, double loss)
{
    PyEval_RestoreThread(callbacks->state);
    PyObject *function = polls ? callbacks->on_progress : callbacks->on_evaluation;
    int status = polls ? PyErr_CheckSignals() : 0;
    if (status == 0 && function != Py_None) {
        callbacks->model->in_callback = true;
        PyObject *out = PyObject_CallFunction(function, "Kd", (unsigned long long)step, loss);
        callbacks->model->in_callback = false;
        status = out ? 0 : -1;
        Py_XDECREF(out);
    }
    callbacks->state = PyEval_SaveThread();
    return status;
}

static int on_evaluation(void *context, uint64_t step, float loss)
{
    return call(context, false, step, loss);
}

static int poll(void *context, uint64_t step, double loss)
{
    return call(context, true, step, loss);
}

enum { MODEL, STREAM, LR, MAX_STEPS, ON_EVALUATION, ON_PROGRESS };

static const FwmArgument arguments[] = {
    [MODEL] = {"model", FWM_OBJECT},
    [STREAM] = {"stream", FWM_OBJECT},
    [LR] = {"lr", FWM_NUMBER, .required = true, .positive = true},
    [MAX_STEPS] = {"max_steps", FWM_INTEGER, .low = 0, .high = 1LL << 62},
    [ON_EVALUATION] = {"on_evaluation", FWM_OBJECT}, /* or None */
    [ON_PROGRESS] = {"on_progress", FWM_OBJECT},
};

static PyObject *run(FwmModelObject *self, FwmStream *stream, const FwmArguments *a)
{
    Callbacks callbacks = {self, NULL, a->given[ON_EVALUATION], a->given[ON_PROGRESS]};
    const FwmTrainCallbacks table = {&callbacks, on_evaluation, poll};
    callbacks.state = PyEval_SaveThread();
    const FwmTrainStatus status =
        fwm_train(&self->model, stream, a->values[LR].number, (uint64_t)a->values[MAX_STEPS].integer, &table);
    PyEval_RestoreThread(callbacks.state);
    if (status == FWM_TRAIN_NO_MEMORY)
        PyErr_NoMemory();
    return status == FWM_TRAIN_ENDED ? Py_NewRef(Py_None) : NULL;
}

static PyObject *train(PyObject *Py_UNUSED(self), FwmArguments *a)
{
    FwmModelObject *model = fwm_model_of(a->given[MODEL]);
    FwmStream *stream = model ? fwm_model_claim_stream(model, a->given[STREAM]) : NULL;
    if (!stream)
        return NULL;
    PyObject *result = NULL;
    if (fwm_model_claim(model, FWM_CHANGES) == 0) {
        result = run(model, stream, a);
        fwm_model_release(model);
    }
    fwm_release(a->given[STREAM]);
    return result;
}

static FwmModuleFunction function = {.signature = {"train", arguments, FWM_LENGTH(arguments)}, .call = train};

int fwm_add_train(PyObject *module)
{
    return fwm_add_function(module, &function);
}
