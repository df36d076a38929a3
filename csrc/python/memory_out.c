/* The argument out of the general memories: arrays to write into, which share no memory with what is read. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include "python/args.h"
#include "python/memory_args.h"

static const char *const input_names[N_INPUTS] = {
    "q", "k", "v", "g", "beta", "b", "w", "initial_state", "initial_state", "do", "dfinal_state", "dfinal_state"};

/* itself: the input that `out` may be, if it is all of it; or -1. */
static int check_apart_from_inputs(const FwmMemoryCall *c, PyArrayObject *out, const char *name, int itself)
{
    for (int i = 0; i < N_GRADIENTS; i++) {
        if (!c->inputs[i] || (i == itself && PyArray_DATA(out) == PyArray_DATA(c->inputs[i])))
            continue;
        if (fwm_check_apart(out, name, c->came[i], input_names[i]) < 0)
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
    if (!c->state || check_apart_from_inputs(c, c->state, name, IN_STATE) < 0 ||
        fwm_check_apart(c->o, "out[0]", c->state, name) < 0)
        return -1;
    if (!given_sum)
        return 0;
    c->sum = fwm_output_array(given_sum, sum_name, c->type, "q", "(sequences, H, K)", 3, sum);
    if (!c->sum || check_apart_from_inputs(c, c->sum, sum_name, IN_SUM) < 0 ||
        fwm_check_apart(c->o, "out[0]", c->sum, sum_name) < 0)
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

/* ---- the backward's ---- */

enum { NAME = 16 };

/* The state's part of out: None without an initial state, with normalize a pair. */
static int deal_state(const FwmMemoryCall *c, PyObject *given, Py_ssize_t at, PyObject *slots[N_GRADIENTS],
                      char names[][NAME])
{
    PyOS_snprintf(names[IN_STATE], NAME, c->m.normalize ? "out[%zd][0]" : "out[%zd]", at);
    PyOS_snprintf(names[IN_SUM], NAME, "out[%zd][1]", at);
    if (!c->inputs[IN_STATE]) {
        if (given == Py_None)
            return 0;
        PyErr_Format(PyExc_ValueError, "out[%zd]: got %.100s, expected None, because there is no initial_state", at,
                     Py_TYPE(given)->tp_name);
        return -1;
    }
    slots[IN_STATE] = given;
    if (!c->m.normalize)
        return 0;
    char pair[NAME];
    PyOS_snprintf(pair, NAME, "out[%zd]", at);
    if (fwm_check_pair(given, pair, "a tuple (S, z) where normalize is True") < 0)
        return -1;
    slots[IN_STATE] = PyTuple_GET_ITEM(given, 0);
    slots[IN_SUM] = PyTuple_GET_ITEM(given, 1);
    return 0;
}

/* out: one for each input that there is, and the state's. */
static int deal_out(const FwmMemoryCall *c, PyObject *out, PyObject *slots[N_GRADIENTS], char names[][NAME])
{
    Py_ssize_t n = 0, at = 0;
    for (int i = 0; i < IN_STATE; i++)
        n += c->inputs[i] != NULL;
    if (fwm_check_gradients(out, n + 1) < 0)
        return -1;
    for (int i = 0; i < IN_STATE; i++) {
        if (!c->inputs[i])
            continue;
        PyOS_snprintf(names[i], NAME, "out[%zd]", at);
        slots[i] = PyTuple_GET_ITEM(out, at++);
    }
    return deal_state(c, PyTuple_GET_ITEM(out, n), n, slots, names);
}

int fwm_memory_gradients(FwmMemoryCall *c, PyObject *out, PyArrayObject *gradients[N_GRADIENTS])
{
    FwmRuleCall *m = &c->m;
    void **const pointers[] = {&m->dq,          &m->dk, &m->dv, &m->dg, &m->dbeta, &m->db, &m->dw, &m->dinitial_state,
                               &m->dinitial_sum};
    PyObject *slots[N_GRADIENTS] = {NULL};
    char names[N_GRADIENTS][NAME];
    FwmNamedArray others[N_INPUTS + N_GRADIENTS];
    size_t n = 0;
    if (out != Py_None && deal_out(c, out, slots, names) < 0)
        return -1;
    for (int i = 0; i < N_INPUTS; i++)
        if (c->inputs[i])
            others[n++] = (FwmNamedArray){c->came[i], input_names[i]};
    for (int i = 0; i < N_GRADIENTS; i++) {
        if (!c->inputs[i])
            continue;
        gradients[i] = fwm_array_like(slots[i], names[i], c->inputs[i], "q", others, n);
        if (!gradients[i])
            return -1;
        others[n++] = (FwmNamedArray){gradients[i], names[i]};
        *pointers[i] = PyArray_DATA(gradients[i]);
    }
    return 0;
}
