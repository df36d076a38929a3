/* train: the loop, which calls back into Python. */
#include "python/arguments.h"
#include "python/bindings.h"
#include "python/claim.h"
#include "python/model_object.h"
#include "retrieval/train.h"

typedef struct {
    FwmModelObject *model;
    PyThreadState *state;
    PyObject *on_evaluation, *on_progress; /* or None */
} Callbacks;

/* 0, or -1 with an exception. */
static int call(const Callbacks *callbacks, PyObject *function, uint64_t step, double loss)
{
    if (function == Py_None)
        return 0;
    callbacks->model->in_callback = true;
    PyObject *out = PyObject_CallFunction(function, "Kd", (unsigned long long)step, loss);
    callbacks->model->in_callback = false;
    Py_XDECREF(out);
    return out ? 0 : -1;
}

static int on_evaluation(void *context, uint64_t step, float loss)
{
    Callbacks *callbacks = context;
    PyEval_RestoreThread(callbacks->state);
    const int status = call(callbacks, callbacks->on_evaluation, step, loss);
    callbacks->state = PyEval_SaveThread();
    return status;
}

static int poll(void *context, uint64_t step, double loss)
{
    Callbacks *callbacks = context;
    PyEval_RestoreThread(callbacks->state);
    int status = PyErr_CheckSignals();
    if (status == 0)
        status = call(callbacks, callbacks->on_progress, step, loss);
    callbacks->state = PyEval_SaveThread();
    return status;
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

static FwmSignature signature = {"train", arguments, FWM_LENGTH(arguments), 0};

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

static PyObject *train(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    FwmArguments a = {0};
    if (fwm_read_arguments(&a, &signature, args, n, names) < 0)
        return NULL;
    PyObject *object = a.given[MODEL];
    if (!fwm_is_model(object))
        return PyErr_Format(PyExc_TypeError, "model: got %.100s, expected a Model", Py_TYPE(object)->tp_name);
    FwmModelObject *self = (FwmModelObject *)object;
    FwmStream *stream = fwm_model_claim_stream(self, a.given[STREAM]);
    PyObject *result = NULL;
    if (stream && fwm_model_claim(self, FWM_CHANGES) == 0) {
        result = run(self, stream, &a);
        fwm_model_release(self);
    }
    if (stream)
        fwm_release(a.given[STREAM]);
    return result;
}

static PyMethodDef functions[] = {
    {"train", (PyCFunction)(void (*)(void))train, METH_FASTCALL | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL},
};

int fwm_add_train(PyObject *module)
{
    return fwm_prepare(&signature) < 0 ? -1 : PyModule_AddFunctions(module, functions);
}
