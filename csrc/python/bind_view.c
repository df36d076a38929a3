/* fwm_py.torch: tensor_array and tensor_arrays, tensors' memory as arrays, and plain_tensors, whether a call's tensors
 * are nothing but numbers in memory.
 *
 * They know nothing of PyTorch but the names of a tensor's attributes, and take a fraction of the time of the same in
 * Python: a call of a few numbers is little more than this. Tensor.numpy() takes longer too, and marks the tensor's
 * storage for good, so that it cannot be resized. */
#include "python/arguments.h"
#include "python/bindings.h"

typedef enum {
    IS_CONTIGUOUS,
    STRIDE,
    SHAPE,
    DATA_PTR,
    IS_CPU,
    LAYOUT,
    IS_NEG,
    REQUIRES_GRAD,
    DTYPE,
    ATTRIBUTES
} Attribute;

static const char *const attribute_names[ATTRIBUTES] = {
    "is_contiguous", "stride", "shape", "data_ptr", "is_cpu", "layout", "is_neg", "requires_grad", "dtype"};
static PyObject *attributes[ATTRIBUTES]; /* interned names */

static int prepare(void)
{
    for (int i = 0; i < ATTRIBUTES; i++)
        if (!attributes[i] && !(attributes[i] = PyUnicode_InternFromString(attribute_names[i])))
            return -1;
    return 0;
}

static PyObject *get(PyObject *tensor, Attribute name)
{
    return PyObject_GetAttr(tensor, attributes[name]);
}

static PyObject *ask(PyObject *tensor, Attribute name)
{
    return PyObject_CallMethodNoArgs(tensor, attributes[name]);
}

/* Whether an answer is `expected`; releases the answer. -1 with an exception. */
static int is(PyObject *answer, PyObject *expected)
{
    Py_XDECREF(answer);
    return answer ? answer == expected : -1;
}

/* The numbers of a tuple, and how many; -1 with an exception. Releases the tuple. */
static int read_sizes(PyObject *given, npy_intp *sizes)
{
    int n = given && PyTuple_Check(given) && PyTuple_GET_SIZE(given) <= NPY_MAXDIMS ? (int)PyTuple_GET_SIZE(given) : -1;
    for (int i = 0; i < n; i++)
        sizes[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(given, i));
    if (n < 0 && !PyErr_Occurred())
        PyErr_Format(PyExc_TypeError, "tensor: got sizes that are no tuple of at most %d", NPY_MAXDIMS);
    Py_XDECREF(given);
    return PyErr_Occurred() ? -1 : n;
}

/* ---- tensor_array ---- */

enum { TENSOR, NUMBERS, READ_ONLY };

static const FwmArgument array_arguments[] = {
    [TENSOR] = {"tensor", FWM_OBJECT}, /* kept alive */
    [NUMBERS] = {"dtype", FWM_OBJECT},
    [READ_ONLY] = {"read_only", FWM_FLAG, .required = true},
};

static PyObject *array_of(PyObject *tensor, PyArray_Descr *dtype, bool contiguous, bool read_only)
{
    npy_intp shape[NPY_MAXDIMS], strides[NPY_MAXDIMS];
    PyObject *pointer = ask(tensor, DATA_PTR);
    void *address = pointer ? PyLong_AsVoidPtr(pointer) : NULL;
    Py_XDECREF(pointer);
    const int rank = PyErr_Occurred() ? -1 : read_sizes(get(tensor, SHAPE), shape);
    if (rank < 0 || (!contiguous && read_sizes(ask(tensor, STRIDE), strides) != rank))
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ValueError, "tensor: got other strides than sizes");
    for (int i = 0; !contiguous && i < rank; i++)
        strides[i] *= PyDataType_ELSIZE(dtype);
    if (!address && PyArray_MultiplyList(shape, rank) > 0)
        return PyErr_Format(PyExc_ValueError, "got a tensor whose storage is empty, expected one with its numbers");
    const int flags = (contiguous ? NPY_ARRAY_C_CONTIGUOUS : 0) | (read_only ? 0 : NPY_ARRAY_WRITEABLE);
    PyObject *array = PyArray_NewFromDescr(&PyArray_Type, (PyArray_Descr *)Py_NewRef(dtype), rank, shape,
                                           contiguous ? NULL : strides, address, flags, NULL);
    if (array)
        PyArray_UpdateFlags((PyArrayObject *)array, NPY_ARRAY_ALIGNED);
    if (array && PyArray_SetBaseObject((PyArrayObject *)array, Py_NewRef(tensor)) < 0)
        Py_CLEAR(array);
    return array;
}

static int check_dtype(PyObject *given)
{
    if (PyArray_DescrCheck(given))
        return prepare();
    PyErr_Format(PyExc_TypeError, "dtype: got %.100s, expected a dtype", Py_TYPE(given)->tp_name);
    return -1;
}

static PyObject *tensor_array(PyObject *Py_UNUSED(self), FwmArguments *a)
{
    PyObject *tensor = a->given[TENSOR], *dtype = a->given[NUMBERS];
    if (check_dtype(dtype) < 0)
        return NULL;
    const int contiguous = is(ask(tensor, IS_CONTIGUOUS), Py_True);
    return contiguous < 0 ? NULL : array_of(tensor, (PyArray_Descr *)dtype, contiguous, a->values[READ_ONLY].flag);
}

FwmModuleFunction fwm_tensor_array = {.signature = {"tensor_array", array_arguments, FWM_LENGTH(array_arguments), 3},
                                      .call = tensor_array};

/* ---- tensor_arrays ---- */

enum { TENSORS, OF_TENSORS, OF_ARRAYS };

static const FwmArgument arrays_arguments[] = {
    [TENSORS] = {"tensors", FWM_OBJECT}, /* a tuple, with None for what there is not */
    [OF_TENSORS] = {"tensor_dtype", FWM_OBJECT},
    [OF_ARRAYS] = {"dtype", FWM_OBJECT},
};

/* 1 where the tensor is contiguous, on the CPU and of the dtype, 0, or -1 with an exception. */
static int is_simple(PyObject *tensor, PyObject *dtype)
{
    const int of_dtype = is(get(tensor, DTYPE), dtype), on_cpu = of_dtype == 1 ? is(get(tensor, IS_CPU), Py_True) : 0;
    return on_cpu == 1 ? is(ask(tensor, IS_CONTIGUOUS), Py_True) : of_dtype < 0 ? of_dtype : on_cpu;
}

static PyObject *tensor_arrays(PyObject *Py_UNUSED(self), FwmArguments *a)
{
    PyObject *tensors = a->given[TENSORS], *dtype = a->given[OF_ARRAYS];
    if (!PyTuple_Check(tensors))
        return PyErr_Format(PyExc_TypeError, "tensors: got %.100s, expected a tuple", Py_TYPE(tensors)->tp_name);
    const Py_ssize_t n = PyTuple_GET_SIZE(tensors);
    PyObject *arrays = check_dtype(dtype) < 0 ? NULL : PyTuple_New(n);
    for (Py_ssize_t i = 0; arrays && i < n; i++) {
        PyObject *x = PyTuple_GET_ITEM(tensors, i), *array = x == Py_None ? Py_NewRef(x) : NULL;
        const int simple = array ? 1 : is_simple(x, a->given[OF_TENSORS]);
        if (simple == 0) {
            Py_DECREF(arrays);
            Py_RETURN_NONE;
        }
        if (simple == 1 && !array)
            array = array_of(x, (PyArray_Descr *)dtype, true, true);
        if (array)
            PyTuple_SET_ITEM(arrays, i, array);
        else
            Py_CLEAR(arrays);
    }
    return arrays;
}

FwmModuleFunction fwm_tensor_arrays = {
    .signature = {"tensor_arrays", arrays_arguments, FWM_LENGTH(arrays_arguments), 3}, .call = tensor_arrays};

/* ---- plain_tensors ---- */

enum { GIVEN, KINDS, STRIDED };

static const FwmArgument plain_arguments[] = {
    [GIVEN] = {"given", FWM_OBJECT},     /* a tuple: a call's arguments */
    [KINDS] = {"kinds", FWM_OBJECT},     /* a tuple: the types of plain tensors */
    [STRIDED] = {"strided", FWM_OBJECT}, /* the layout */
};

static bool is_kind(PyObject *x, PyObject *kinds)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(kinds); i++)
        if ((PyObject *)Py_TYPE(x) == PyTuple_GET_ITEM(kinds, i))
            return true;
    return false;
}

static bool is_option(PyObject *x)
{
    return x == Py_None || PyBool_Check(x) || PyUnicode_CheckExact(x) || PyFloat_CheckExact(x) || PyLong_CheckExact(x);
}

/* Whether there are numbers at an address: zeros that PyTorch only speaks of, and tensors of a batch that it maps over,
 * have none, though they look like others. 0 for an empty tensor, too: the operator serves all of these. */
static int has_memory(PyObject *tensor)
{
    PyObject *pointer = ask(tensor, DATA_PTR);
    const int found = pointer ? PyObject_IsTrue(pointer) : PyErr_ExceptionMatches(PyExc_RuntimeError) ? 0 : -1;
    if (found == 0)
        PyErr_Clear();
    Py_XDECREF(pointer);
    return found;
}

/* 1 if it is, 0, or -1 with an exception. */
static int is_plain(PyObject *tensor, PyObject *strided)
{
    const int on_cpu = is(get(tensor, IS_CPU), Py_True), laid_out = on_cpu == 1 ? is(get(tensor, LAYOUT), strided) : 0;
    const int as_they_are = laid_out == 1 ? is(ask(tensor, IS_NEG), Py_False) : on_cpu < 0 ? on_cpu : laid_out;
    return as_they_are == 1 ? has_memory(tensor) : as_they_are;
}

static PyObject *plain_tensors(PyObject *Py_UNUSED(self), FwmArguments *a)
{
    PyObject *given = a->given[GIVEN], *kinds = a->given[KINDS];
    bool differentiable = false;
    if (!PyTuple_Check(given) || !PyTuple_Check(kinds))
        return PyErr_Format(PyExc_TypeError, "given: got no tuple, expected two tuples");
    if (prepare() < 0)
        return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(given); i++) {
        PyObject *x = PyTuple_GET_ITEM(given, i);
        if (is_option(x))
            continue;
        const int plain = is_kind(x, kinds) ? is_plain(x, a->given[STRIDED]) : 0;
        const int requires = plain == 1 && !differentiable ? is(get(x, REQUIRES_GRAD), Py_True) : 0;
        if (plain < 0 || requires < 0)
            return NULL;
        if (!plain)
            Py_RETURN_NONE;
        differentiable |= requires;
    }
    return PyBool_FromLong(differentiable);
}

FwmModuleFunction fwm_plain_tensors = {.signature = {"plain_tensors", plain_arguments, FWM_LENGTH(plain_arguments), 3},
                                       .call = plain_tensors};
