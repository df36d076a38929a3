/* fwm_py.torch: array_at, memory of another object as an array. NumPy's own ways to it take twice as long, or have
 * effects on the object (Tensor.numpy() marks the tensor's storage for good). */
#include "python/arguments.h"
#include "python/bindings.h"

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

enum { OWNER, ADDRESS, SHAPE, STRIDES, DTYPE, READ_ONLY };

static const FwmArgument arguments[] = {
    [OWNER] = {"owner", FWM_OBJECT}, /* kept alive */
    [ADDRESS] = {"address", FWM_OBJECT},
    [SHAPE] = {"shape", FWM_OBJECT},
    [STRIDES] = {"strides", FWM_OBJECT, .optional = true}, /* in numbers; None: contiguous */
    [DTYPE] = {"dtype", FWM_OBJECT},
    [READ_ONLY] = {"read_only", FWM_FLAG, .required = true},
};

static PyObject *array_at(PyObject *Py_UNUSED(self), FwmArguments *a)
{
    npy_intp shape[NPY_MAXDIMS], strides[NPY_MAXDIMS];
    PyObject *const *given = a->given;
    if (!PyArray_DescrCheck(given[DTYPE]))
        return PyErr_Format(PyExc_TypeError, "dtype: got %.100s, expected a dtype", Py_TYPE(given[DTYPE])->tp_name);
    void *address = PyLong_AsVoidPtr(given[ADDRESS]);
    const int rank = PyErr_Occurred() ? -1 : read_sizes(given[SHAPE], "shape", shape);
    if (rank < 0 || (given[STRIDES] && read_sizes(given[STRIDES], "strides", strides) != rank))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "strides: expected %d, as shape has", rank);
    PyArray_Descr *dtype = (PyArray_Descr *)Py_NewRef(given[DTYPE]);
    for (int i = 0; given[STRIDES] && i < rank; i++)
        strides[i] *= PyDataType_ELSIZE(dtype);
    const int flags =
        (given[STRIDES] ? 0 : NPY_ARRAY_C_CONTIGUOUS) | (a->values[READ_ONLY].flag ? 0 : NPY_ARRAY_WRITEABLE);
    PyObject *array =
        PyArray_NewFromDescr(&PyArray_Type, dtype, rank, shape, given[STRIDES] ? strides : NULL, address, flags, NULL);
    if (array)
        PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_ALIGNED);
    if (array && PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(given[OWNER])) < 0)
        Py_CLEAR(array);
    return array;
}

FwmModuleFunction fwm_array_at = {.signature = {"array_at", arguments, FWM_LENGTH(arguments), FWM_LENGTH(arguments)},
                                  .call = array_at};
