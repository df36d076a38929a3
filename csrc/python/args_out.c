/* Arrays to write into: what they must be, and that they share no memory with what is read. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include "python/args.h"

enum { MOST_INPUTS = 6, MOST_GRADIENTS = 4 };

PyArrayObject *fwm_output_array(PyObject *given, const char *name, int type, const char *like, const char *letters,
                                int rank, const npy_intp *shape)
{
    const char *expected = type == NPY_FLOAT ? "float32" : "float64";
    if (!PyArray_Check(given))
        return (PyArrayObject *)PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected an array", name,
                                             Py_TYPE(given)->tp_name);
    PyArrayObject *array = (PyArrayObject *)given;
    if (fwm_check_unmasked(given, name) < 0)
        return NULL;
    if (PyArray_TYPE(array) != type || !PyArray_ISNOTSWAPPED(array))
        return (PyArrayObject *)PyErr_Format(PyExc_TypeError, "%s: got %S, expected %s in native byte order, as %s has",
                                             name, (PyObject *)PyArray_DESCR(array), expected, like);
    if (fwm_check_shape(array, name, letters, rank, shape) < 0)
        return NULL;
    const char *got = !PyArray_ISWRITEABLE(array)       ? "a read-only array"
                      : !PyArray_ISALIGNED(array)       ? "an unaligned array"
                      : !PyArray_IS_C_CONTIGUOUS(array) ? "an array that is not C-contiguous"
                                                        : NULL;
    if (got)
        return (PyArrayObject *)PyErr_Format(
            PyExc_ValueError, "%s: got %s, expected one to write to, C-contiguous and aligned", name, got);
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

int fwm_check_apart(PyArrayObject *out, const char *name, PyArrayObject *other, const char *other_name)
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

PyArrayObject *fwm_array_like(PyObject *given, const char *name, PyArrayObject *input, const char *like,
                              const FwmNamedArray *others, size_t n_others)
{
    const int rank = PyArray_NDIM(input), type = PyArray_TYPE(input);
    if (!given)
        return (PyArrayObject *)PyArray_SimpleNew(rank, PyArray_DIMS(input), type);
    PyArrayObject *array = fwm_output_array(given, name, type, like, "as its input", rank, PyArray_DIMS(input));
    for (size_t i = 0; array && i < n_others; i++)
        if (fwm_check_apart(array, name, others[i].array, others[i].name) < 0)
            Py_CLEAR(array);
    return array;
}

int fwm_check_gradients(PyObject *out, Py_ssize_t n)
{
    if (PyTuple_Check(out) && PyTuple_GET_SIZE(out) == n)
        return 0;
    if (PyTuple_Check(out))
        PyErr_Format(PyExc_ValueError, "out: got a tuple of %zd, expected one of the %zd gradients",
                     PyTuple_GET_SIZE(out), n);
    else
        PyErr_Format(PyExc_TypeError, "out: got %.100s, expected a tuple of the %zd gradients", Py_TYPE(out)->tp_name,
                     n);
    return -1;
}

size_t fwm_name_inputs(FwmInputs inputs, FwmNamedArray *named)
{
    size_t n = 0;
    for (size_t i = 0; i < inputs.n; i++)
        if (inputs.read[i])
            named[n++] = (FwmNamedArray){inputs.came[i], inputs.names[i]};
    return n;
}

static int check_no_gradient(PyObject *given, size_t i, const char *input)
{
    if (!given || given == Py_None)
        return 0;
    PyErr_Format(PyExc_ValueError, "out[%zu]: got %.100s, expected None, because there is no %s", i,
                 Py_TYPE(given)->tp_name, input);
    return -1;
}

int fwm_gradient_arrays(FwmInputs inputs, PyObject *out, size_t n, PyArrayObject **gradients)
{
    static const char *const names[MOST_GRADIENTS] = {"out[0]", "out[1]", "out[2]", "out[3]"};
    FwmNamedArray others[MOST_INPUTS + MOST_GRADIENTS];
    size_t n_others = fwm_name_inputs(inputs, others);
    if (out != Py_None && fwm_check_gradients(out, (Py_ssize_t)n) < 0)
        return -1;
    for (size_t i = 0; i < n; i++) {
        PyObject *given = out == Py_None ? NULL : PyTuple_GET_ITEM(out, (Py_ssize_t)i);
        if (!inputs.read[i] && check_no_gradient(given, i, inputs.names[i]) < 0)
            return -1;
        if (!inputs.read[i])
            continue;
        gradients[i] = fwm_array_like(given, names[i], inputs.read[i], inputs.names[0], others, n_others);
        if (!gradients[i])
            return -1;
        others[n_others++] = (FwmNamedArray){gradients[i], names[i]};
    }
    return 0;
}

PyObject *fwm_array_tuple(size_t n, PyArrayObject *const *arrays)
{
    PyObject *tuple = PyTuple_New((Py_ssize_t)n);
    for (size_t i = 0; tuple && i < n; i++)
        PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, Py_NewRef(arrays[i] ? (PyObject *)arrays[i] : Py_None));
    return tuple;
}
