/* The argument out of the general memories: arrays to write into, which share no memory with what is read. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include "python/args.h"
#include "python/memory_args.h"

/* itself: the input that `out` may be, if it is all of it; or -1. */
static int check_apart_from_inputs(const FwmMemoryCall *c, PyArrayObject *out, const char *name, int itself)
{
    static const char *const names[] = {"q", "k", "v", "g", "beta", "b", "w", "initial_state", "initial_state"};
    for (int i = 0; i < N_GRADIENTS; i++) {
        if (!c->inputs[i] || (i == itself && PyArray_DATA(out) == PyArray_DATA(c->inputs[i])))
            continue;
        if (fwm_check_apart(out, name, c->came[i], names[i]) < 0)
            return -1;
    }
    return 0;
}

/* out[1], which with normalize is a pair. */
static int read_out_state(FwmMemoryCall *c, PyObject *given, const npy_intp *state, const npy_intp *sum)
{
    const char *name = c->m.normalize ? "out[1][0]" : "out[1]", *sum_name = "out[1][1]";
    PyObject *given_sum = NULL;
    if (c->m.normalize) {
        if (fwm_check_pair(given, "out[1]", "a tuple (S, z) where normalize is True") < 0)
            return -1;
        given_sum = PyTuple_GET_ITEM(given, 1);
        given = PyTuple_GET_ITEM(given, 0);
    }
    c->state = fwm_output_array(given, name, c->type, "q", "(sequences, HV, K, V)", 4, state);
    if (!c->state || check_apart_from_inputs(c, c->state, name, IN_STATE) < 0 || fwm_check_apart(c->o, "out[0]", c->state, name) < 0)
        return -1;
    if (!given_sum)
        return 0;
    c->sum = fwm_output_array(given_sum, sum_name, c->type, "q", "(sequences, H, K)", 3, sum);
    if (!c->sum || check_apart_from_inputs(c, c->sum, sum_name, IN_SUM) < 0 || fwm_check_apart(c->o, "out[0]", c->sum, sum_name) < 0)
        return -1;
    return fwm_check_apart(c->sum, sum_name, c->state, name);
}

int fwm_read_memory_out(FwmMemoryCall *c, PyObject *out)
{
    npy_intp o[4], state[4], sum[3];
    PyObject *given_state = NULL;
    const char *name = "out";
    if (out == Py_None)
        return 0;
    fwm_memory_shapes(c, o, state, sum);
    if (PyTuple_Check(out)) {
        if (fwm_check_pair(out, "out", "an array o, or a tuple (o, state)") < 0)
            return -1;
        given_state = PyTuple_GET_ITEM(out, 1);
        out = PyTuple_GET_ITEM(out, 0);
        name = "out[0]";
    }
    c->o = fwm_output_array(out, name, c->type, "q", c->HQ > c->HV ? "(B, T, HQ, V)" : "(B, T, HV, V)", 4, o);
    if (!c->o || check_apart_from_inputs(c, c->o, name, -1) < 0)
        return -1;
    return given_state ? read_out_state(c, given_state, state, sum) : 0;
}
