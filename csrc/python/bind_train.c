/* train: the loop, which calls back into Python. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "python/bind_model.h"
#include "python/bind_random.h"
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

PyObject *fwm_py_train(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *object, *given, *given_steps;
    Callbacks callbacks = {0};
    double lr;
    long long max_steps;
    if (!PyArg_ParseTuple(args, "OOdOOO:train", &object, &given, &lr, &given_steps, &callbacks.on_evaluation,
                          &callbacks.on_progress) ||
        fwm_integer_argument(given_steps, "max_steps", 0, 1LL << 62, &max_steps) < 0)
        return NULL;
    if (!fwm_is_model(object))
        return PyErr_Format(PyExc_TypeError, "model: got %.100s, expected a Model", Py_TYPE(object)->tp_name);
    if (!(lr > 0 && lr <= 1e300))
        return PyErr_Format(PyExc_ValueError, "lr: expected a finite number above 0");
    FwmModelObject *self = (FwmModelObject *)object;
    FwmStream *stream = fwm_model_claim_stream(self, given);
    if (!stream)
        return NULL;
    if (fwm_model_claim(self, FWM_CHANGES) < 0) {
        fwm_random_release(given);
        return NULL;
    }
    callbacks.model = self;
    const FwmTrainCallbacks table = {&callbacks, on_evaluation, poll};
    callbacks.state = PyEval_SaveThread();
    const FwmTrainStatus status = fwm_train(&self->model, stream, lr, (uint64_t)max_steps, &table);
    PyEval_RestoreThread(callbacks.state);
    fwm_model_release(self);
    fwm_random_release(given);
    if (status == FWM_TRAIN_NO_MEMORY)
        PyErr_NoMemory();
    return status == FWM_TRAIN_ENDED ? Py_NewRef(Py_None) : NULL;
}
