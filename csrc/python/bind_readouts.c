/* fwm_py.readouts: rule_forward, rule_backward. A sequence is a task. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include "python/args.h"
#include "python/bind_random.h"
#include "python/bind_readouts.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

#define LARGEST_N_VALUES (1 << 24)

typedef struct {
    const FwmKernels *kernels;
    size_t rule, B, L, p, n_values;
    PyArrayObject *dy, *keys, *values, *beta, *query; /* dy NULL: forward; beta NULL: the rule has none */
    PyArrayObject *y, *dkeys, *dbeta, *dquery;
} RuleCall;

static int read_inputs(RuleCall *c, PyObject *dy, PyObject *keys, PyObject *values, PyObject *beta, PyObject *query,
                       PyObject *n_values)
{
    long long n;
    if (fwm_integer_argument(n_values, "n_values", 1, LARGEST_N_VALUES, &n) < 0)
        return -1;
    c->n_values = (size_t)n;
    c->keys = fwm_real_array(keys, "keys", 0, NULL);
    const npy_intp any[] = {-1, -1, -1};
    if (!c->keys || fwm_check_shape(c->keys, "keys", "(B, L, p)", 3, any) < 0)
        return -1;
    const npy_intp *shape = PyArray_DIMS(c->keys);
    const npy_intp query_shape[] = {shape[0], shape[2]}, dy_shape[] = {shape[0], (npy_intp)n};
    const int type = PyArray_TYPE(c->keys);
    if (shape[2] == 0) {
        PyErr_SetString(PyExc_ValueError, "keys: got shape (B, L, 0), expected at least one feature");
        return -1;
    }
    c->kernels = fwm_kernels_for(c->keys);
    c->B = (size_t)shape[0], c->L = (size_t)shape[1], c->p = (size_t)shape[2];
    c->values = fwm_index_array(values, "values", "(B, L)", 2, shape, 0, n - 1);
    if (!c->values)
        return -1;
    if (c->kernels->readout_info(c->rule)->uses_beta) {
        c->beta = fwm_real_array(beta, "beta", type, "keys");
        if (!c->beta || fwm_check_shape(c->beta, "beta", "(B, L)", 2, shape) < 0)
            return -1;
    }
    c->query = fwm_real_array(query, "query", type, "keys");
    if (!c->query || fwm_check_shape(c->query, "query", "(B, p)", 2, query_shape) < 0)
        return -1;
    if (dy) {
        c->dy = fwm_real_array(dy, "dy", type, "keys");
        if (!c->dy || fwm_check_shape(c->dy, "dy", "(B, n_values)", 2, dy_shape) < 0)
            return -1;
    }
    return 0;
}

static PyArrayObject *new_like(PyArrayObject *array)
{
    return (PyArrayObject *)PyArray_SimpleNew(PyArray_NDIM(array), PyArray_DIMS(array), PyArray_TYPE(array));
}

static int run(RuleCall *c)
{
    if (c->dy) {
        c->dkeys = new_like(c->keys);
        c->dquery = new_like(c->query);
        c->dbeta = c->beta ? new_like(c->beta) : NULL;
        if (!c->dkeys || !c->dquery || (c->beta && !c->dbeta))
            return -1;
    } else {
        const npy_intp shape[] = {(npy_intp)c->B, (npy_intp)c->n_values};
        c->y = (PyArrayObject *)PyArray_SimpleNew(2, shape, PyArray_TYPE(c->keys));
        if (!c->y)
            return -1;
    }
    const FwmReadoutCall call = {.readout = c->rule,
                                 .B = c->B,
                                 .L = c->L,
                                 .p = c->p,
                                 .n_values = c->n_values,
                                 .keys = PyArray_DATA(c->keys),
                                 .values = PyArray_DATA(c->values),
                                 .beta = fwm_data(c->beta),
                                 .query = PyArray_DATA(c->query),
                                 .y = fwm_data(c->y),
                                 .dy = fwm_data(c->dy),
                                 .dkeys = fwm_data(c->dkeys),
                                 .dbeta = fwm_data(c->dbeta),
                                 .dquery = fwm_data(c->dquery)};
    return fwm_run(&c->kernels->readout, c->dy ? &c->kernels->readout.backward : &c->kernels->readout.forward, &call);
}

static PyObject *result(RuleCall *c)
{
    if (!c->dy)
        return Py_NewRef((PyObject *)c->y);
    return PyTuple_Pack(3, (PyObject *)c->dkeys, c->dbeta ? (PyObject *)c->dbeta : Py_None, (PyObject *)c->dquery);
}

static PyObject *call_rule(PyObject *function, PyObject *dy, PyObject *keys, PyObject *values, PyObject *beta,
                           PyObject *query, PyObject *n_values)
{
    RuleCall c = {0};
    const Py_ssize_t row = fwm_find_readout(function, "function");
    if (row < 0)
        return NULL;
    c.rule = (size_t)row;
    PyObject *out = NULL;
    if (read_inputs(&c, dy, keys, values, beta, query, n_values) == 0 && run(&c) == 0)
        out = result(&c);
    PyArrayObject *const all[] = {c.dy, c.keys, c.values, c.beta, c.query, c.y, c.dkeys, c.dbeta, c.dquery};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        Py_XDECREF(all[i]);
    return out;
}

PyObject *fwm_py_rule_forward(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *function, *keys, *values, *beta, *query, *n_values;
    if (!PyArg_ParseTuple(args, "OOOOOO:rule_forward", &function, &keys, &values, &beta, &query, &n_values))
        return NULL;
    return call_rule(function, NULL, keys, values, beta, query, n_values);
}

PyObject *fwm_py_rule_backward(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *function, *dy, *keys, *values, *beta, *query, *n_values;
    if (!PyArg_ParseTuple(args, "OOOOOOO:rule_backward", &function, &dy, &keys, &values, &beta, &query, &n_values))
        return NULL;
    return call_rule(function, dy, keys, values, beta, query, n_values);
}
