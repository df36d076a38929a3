/* The argument out of the general memories: arrays to write into, which share no memory with what is read. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include "python/args.h"
#include "python/memory_args.h"

/* An array that can be written as it stands; a new reference, NULL with an exception. */
static PyArrayObject *writable(const FwmMemoryCall *c, PyObject *given, const char *name, const char *letters, int rank,
                               const npy_intp *shape)
{
    const char *expected = c->type == NPY_FLOAT ? "float32" : "float64";
    if (!PyArray_Check(given))
        return (PyArrayObject *)PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected an array", name, Py_TYPE(given)->tp_name);
    PyArrayObject *array = (PyArrayObject *)given;
    if (PyArray_TYPE(array) != c->type || !PyArray_ISNOTSWAPPED(array))
        return (PyArrayObject *)PyErr_Format(PyExc_TypeError, "%s: got %S, expected %s in native byte order, as q has", name,
                                             (PyObject *)PyArray_DESCR(array), expected);
    if (fwm_check_shape(array, name, letters, rank, shape) < 0)
        return NULL;
    const char *got = !PyArray_ISWRITEABLE(array)      ? "a read-only array"
                      : !PyArray_ISALIGNED(array)      ? "an unaligned array"
                      : !PyArray_IS_C_CONTIGUOUS(array) ? "an array that is not C-contiguous"
                                                       : NULL;
    if (got)
        return (PyArrayObject *)PyErr_Format(PyExc_ValueError, "%s: got %s, expected one to write to, C-contiguous and aligned", name, got);
    return (PyArrayObject *)Py_NewRef(given);
}

/* The first byte, and the byte behind the last. */
static void bounds(PyArrayObject *array, uintptr_t *low, uintptr_t *high)
{
    *low = *high = (uintptr_t)PyArray_DATA(array);
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        const npy_intp reach = (PyArray_DIM(array, i) - 1) * PyArray_STRIDE(array, i);
        if (reach < 0)
            *low += (uintptr_t)reach;
        else
            *high += (uintptr_t)reach;
    }
    *high += (uintptr_t)PyArray_ITEMSIZE(array);
}

/* Whether numpy.shares_memory says so; -1 with an exception. */
static int shares_memory(PyArrayObject *a, PyArrayObject *b)
{
    PyObject *numpy = PyImport_ImportModule("numpy");
    PyObject *answer = numpy ? PyObject_CallMethod(numpy, "shares_memory", "OO", a, b) : NULL;
    const int shares = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    Py_XDECREF(numpy);
    return shares;
}

/* 0, or -1 with an exception if `out`, which is contiguous, shares memory with `other`. */
static int check_apart(PyArrayObject *out, const char *name, PyArrayObject *other, const char *other_name)
{
    uintptr_t low, high, other_low, other_high;
    if (PyArray_SIZE(out) == 0 || PyArray_SIZE(other) == 0)
        return 0;
    bounds(out, &low, &high);
    bounds(other, &other_low, &other_high);
    if (high <= other_low || other_high <= low)
        return 0;
    const int shares = PyArray_ISONESEGMENT(other) ? 1 : shares_memory(out, other);
    if (shares > 0)
        PyErr_Format(PyExc_ValueError, "%s: got memory of %s, expected memory of its own", name, other_name);
    return shares == 0 ? 0 : -1;
}

/* itself: the input that `out` may be, if it is all of it; or -1. */
static int check_apart_from_inputs(const FwmMemoryCall *c, PyArrayObject *out, const char *name, int itself)
{
    static const char *const names[] = {"q", "k", "v", "g", "beta", "b", "w", "initial_state", "initial_state"};
    for (int i = 0; i < N_GRADIENTS; i++) {
        if (!c->inputs[i] || (i == itself && PyArray_DATA(out) == PyArray_DATA(c->inputs[i])))
            continue;
        if (check_apart(out, name, c->came[i], names[i]) < 0)
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
    c->state = writable(c, given, name, "(sequences, HV, K, V)", 4, state);
    if (!c->state || check_apart_from_inputs(c, c->state, name, IN_STATE) < 0 || check_apart(c->o, "out[0]", c->state, name) < 0)
        return -1;
    if (!given_sum)
        return 0;
    c->sum = writable(c, given_sum, sum_name, "(sequences, H, K)", 3, sum);
    if (!c->sum || check_apart_from_inputs(c, c->sum, sum_name, IN_SUM) < 0 || check_apart(c->o, "out[0]", c->sum, sum_name) < 0)
        return -1;
    return check_apart(c->sum, sum_name, c->state, name);
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
    c->o = writable(c, out, name, c->HQ > c->HV ? "(B, T, HQ, V)" : "(B, T, HV, V)", 4, o);
    if (!c->o || check_apart_from_inputs(c, c->o, name, -1) < 0)
        return -1;
    return given_state ? read_out_state(c, given_state, state, sum) : 0;
}
