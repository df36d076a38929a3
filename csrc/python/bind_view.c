/* fwm_py.torch: array_at, memory of another object as an array. NumPy's own ways to it take twice as long, or have
 * effects on the object (Tensor.numpy() marks the tensor's storage for good). */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include "python/args.h"
#include "python/bind_view.h"

/* The numbers of a tuple; returns how many, or -1. */
static int read_sizes(PyObject *given, const char *name, npy_intp *sizes)
{
    if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) > NPY_MAXDIMS) {
        PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected a tuple of at most %d", name, Py_TYPE(given)->tp_name,
                     NPY_MAXDIMS);
        return -1;
    }
    const int n = (int)PyTuple_GET_SIZE(given);
    for (int i = 0; i < n; i++)
        sizes[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(given, i));
    return PyErr_Occurred() ? -1 : n;
}

/* args: owner (kept alive), address, shape, strides (in numbers; None if contiguous), dtype, read_only. */
PyObject *fwm_py_array_at(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    npy_intp shape[NPY_MAXDIMS], strides[NPY_MAXDIMS];
    bool read_only;
    if (fwm_check_count("array_at", n_args, 6) < 0 || fwm_flag(args[5], "read_only", &read_only) < 0)
        return NULL;
    if (!PyArray_DescrCheck(args[4]))
        return PyErr_Format(PyExc_TypeError, "dtype: got %.100s, expected a dtype", Py_TYPE(args[4])->tp_name);
    void *address = PyLong_AsVoidPtr(args[1]);
    const int rank = PyErr_Occurred() ? -1 : read_sizes(args[2], "shape", shape);
    const bool has_strides = args[3] != Py_None;
    if (rank < 0 || (has_strides && read_sizes(args[3], "strides", strides) != rank))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "strides: expected %d, as shape has", rank);
    PyArray_Descr *dtype = (PyArray_Descr *)Py_NewRef(args[4]);
    for (int i = 0; has_strides && i < rank; i++)
        strides[i] *= PyDataType_ELSIZE(dtype);
    const int flags = (has_strides ? 0 : NPY_ARRAY_C_CONTIGUOUS) | (read_only ? 0 : NPY_ARRAY_WRITEABLE);
    PyObject *array =
        PyArray_NewFromDescr(&PyArray_Type, dtype, rank, shape, has_strides ? strides : NULL, address, flags, NULL);
    if (array)
        PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_ALIGNED);
    if (array && PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(args[0])) < 0)
        Py_CLEAR(array);
    return array;
}
