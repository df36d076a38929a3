#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include <math.h>
#include <string.h>

#include "python/args.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"
#include "api/dispatch.h"

static const char *type_name(int type)
{
    return type == NPY_FLOAT ? "float32" : "float64";
}

/* The masked entries of a numpy.ma.MaskedArray, or of the first in a list, which NumPy's conversion forgets; -1 with an
 * exception. Lists are looked into as deep as NumPy does. */
static Py_ssize_t masked_entries(PyObject *given, int depth)
{
    if (PyList_Check(given) || PyTuple_Check(given)) {
        Py_ssize_t found = 0;
        for (Py_ssize_t i = 0; found == 0 && depth < NPY_MAXDIMS && i < PySequence_Fast_GET_SIZE(given); i++)
            found = masked_entries(PySequence_Fast_GET_ITEM(given, i), depth + 1);
        return found;
    }
    if (PyArray_CheckExact(given) || !PyArray_Check(given))
        return 0;
    PyObject *numpy_ma = PyImport_ImportModule("numpy.ma");
    PyObject *type = numpy_ma ? PyObject_GetAttrString(numpy_ma, "MaskedArray") : NULL;
    const int is_masked = type ? PyObject_IsInstance(given, type) : -1;
    PyObject *count = is_masked > 0 ? PyObject_CallMethod(numpy_ma, "count_masked", "O", given) : NULL;
    const Py_ssize_t found = is_masked == 0 ? 0 : count ? PyNumber_AsSsize_t(count, NULL) : -1;
    Py_XDECREF(count);
    Py_XDECREF(type);
    Py_XDECREF(numpy_ma);
    return found;
}

int fwm_check_unmasked(PyObject *given, const char *name)
{
    const Py_ssize_t found = masked_entries(given, 0);
    if (found > 0)
        PyErr_Format(PyExc_ValueError, "%s: got a masked array with %zd masked entries, expected one without", name,
                     found);
    return found == 0 ? 0 : -1;
}

PyArrayObject *fwm_any_array(PyObject *given, const char *name)
{
    if (PyArray_CheckExact(given))
        return (PyArrayObject *)Py_NewRef(given);
    if (fwm_check_unmasked(given, name) < 0)
        return NULL;
    PyArrayObject *any = (PyArrayObject *)PyArray_FROM_O(given);
    if (!any && PyErr_ExceptionMatches(PyExc_ValueError))
        PyErr_Format(PyExc_ValueError, "%s: got %.100s, expected an array, or lists of the same length", name,
                     Py_TYPE(given)->tp_name);
    return any;
}

PyArrayObject *fwm_real_array(PyObject *given, const char *name, int type, const char *like)
{
    if (PyArray_CheckExact(given) &&
        PyArray_ISCARRAY_RO((PyArrayObject *)given)) { /* as a rule there is nothing to do */
        const int as_is = PyArray_TYPE((PyArrayObject *)given);
        if (type ? as_is == type : as_is == NPY_FLOAT || as_is == NPY_DOUBLE)
            return (PyArrayObject *)Py_NewRef(given);
    }
    PyArrayObject *any = fwm_any_array(given, name);
    if (!any)
        return NULL;
    const int got = PyArray_TYPE(any);
    if ((got != NPY_FLOAT && got != NPY_DOUBLE) || (type && got != type)) {
        if (type)
            PyErr_Format(PyExc_TypeError, "%s: got %S, expected %s, as %s has", name, (PyObject *)PyArray_DESCR(any),
                         type_name(type), like);
        else
            PyErr_Format(PyExc_TypeError, "%s: got %S, expected float32 or float64", name,
                         (PyObject *)PyArray_DESCR(any));
        Py_DECREF(any);
        return NULL;
    }
    PyArrayObject *array =
        (PyArrayObject *)PyArray_FromArray(any, PyArray_DescrFromType(got), NPY_ARRAY_CARRAY_RO | NPY_ARRAY_NOTSWAPPED);
    Py_DECREF(any);
    return array;
}

PyArrayObject *fwm_real_input(PyObject *given, const char *name, int type, const char *like, PyArrayObject **came)
{
    *came = fwm_any_array(given, name);
    return *came ? fwm_real_array((PyObject *)*came, name, type, like) : NULL;
}

PyArrayObject *fwm_real_array_as(PyObject *given, const char *name, int type)
{
    PyArrayObject *array = fwm_real_array(given, name, 0, NULL);
    if (!array || PyArray_TYPE(array) == type)
        return array;
    int held = 1;
    for (npy_intp i = 0; held && type == NPY_FLOAT && i < PyArray_SIZE(array); i++) {
        const double number = ((const double *)PyArray_DATA(array))[i];
        held = !isfinite(number) || isfinite((float)number);
    }
    PyArrayObject *converted = NULL;
    if (held)
        converted = (PyArrayObject *)PyArray_FromArray(array, PyArray_DescrFromType(type),
                                                       NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST);
    else
        PyErr_Format(PyExc_ValueError, "%s: got a number beyond float32, expected numbers that are finite in it", name);
    Py_DECREF(array);
    return converted;
}

int fwm_check_shape(PyArrayObject *array, const char *name, const char *letters, int rank, const npy_intp *shape)
{
    int fits = PyArray_NDIM(array) == rank;
    for (int i = 0; fits && i < rank; i++)
        fits = shape[i] < 0 || PyArray_DIM(array, i) == shape[i];
    if (fits)
        return 0;
    PyObject *got = PyArray_IntTupleFromIntp(PyArray_NDIM(array), PyArray_DIMS(array));
    PyObject *expected = PyTuple_New(rank);
    for (int i = 0; expected && i < rank; i++)
        PyTuple_SET_ITEM(expected, i, shape[i] < 0 ? PyUnicode_FromString("any") : PyLong_FromSsize_t(shape[i]));
    if (got && expected)
        PyErr_Format(PyExc_ValueError, "%s: got shape %S, expected %s, here %S", name, got, letters, expected);
    Py_XDECREF(got);
    Py_XDECREF(expected);
    return -1;
}

/* out = in - low; -1 if a number is outside low..high. One loop without an exit, for the compiler to vectorise. */
static int narrow(const int64_t *restrict in, npy_intp n, int64_t low, int64_t high, int32_t *restrict out)
{
    int outside = 0;
    for (npy_intp i = 0; i < n; i++) {
        outside |= (in[i] < low) | (in[i] > high);
        out[i] = (int32_t)((uint64_t)in[i] - (uint64_t)low); /* of one outside, the signed difference may overflow */
    }
    return outside ? -1 : 0;
}

static void report_outside(PyArrayObject *array, const char *name, int is_unsigned, long long low, long long high)
{
    const int64_t *in = PyArray_DATA(array);
    while (*in >= low && *in <= high)
        in++;
    PyErr_Format(PyExc_ValueError,
                 is_unsigned ? "%s: got %llu, expected integers in %lld..%lld"
                             : "%s: got %lld, expected integers in %lld..%lld",
                 name, (long long)*in, low, high); /* an unsigned number beyond int64 has become negative */
}

PyArrayObject *fwm_index_array(PyObject *given, const char *name, const char *letters, int rank, const npy_intp *shape,
                               long long low, long long high)
{
    PyArrayObject *any = fwm_any_array(given, name);
    if (!any)
        return NULL;
    const int is_unsigned = PyTypeNum_ISUNSIGNED(PyArray_TYPE(any));
    if (!PyTypeNum_ISINTEGER(PyArray_TYPE(any)) && PyArray_SIZE(any) > 0) {
        PyErr_Format(PyExc_TypeError, "%s: got %S, expected integers", name, (PyObject *)PyArray_DESCR(any));
        Py_DECREF(any);
        return NULL;
    }
    PyArrayObject *wide = NULL, *out = NULL;
    if (fwm_check_shape(any, name, letters, rank, shape) == 0)
        wide = (PyArrayObject *)PyArray_FromArray(any, PyArray_DescrFromType(NPY_INT64),
                                                  NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST);
    if (wide)
        out = (PyArrayObject *)PyArray_SimpleNew(rank, PyArray_DIMS(wide), NPY_INT32);
    if (out && narrow(PyArray_DATA(wide), PyArray_SIZE(wide), low, high, PyArray_DATA(out)) < 0) {
        report_outside(wide, name, is_unsigned, low, high);
        Py_CLEAR(out);
    }
    Py_XDECREF(wide);
    Py_DECREF(any);
    return out;
}

void *fwm_data(PyArrayObject *array)
{
    return array ? PyArray_DATA(array) : NULL;
}

int fwm_flag(PyObject *given, const char *name, bool *value)
{
    if (!PyBool_Check(given)) {
        PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected True or False", name, Py_TYPE(given)->tp_name);
        return -1;
    }
    *value = given == Py_True;
    return 0;
}

int fwm_finite_number(PyObject *given, const char *name, int type, double *value)
{
    *value = PyFloat_AsDouble(given);
    if (*value == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected a number", name, Py_TYPE(given)->tp_name);
        else if (PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Format(PyExc_ValueError, "%s: got an integer beyond all floats, expected a finite number", name);
        return -1;
    }
    const double held = type == NPY_FLOAT ? (double)(float)*value : *value;
    if (isfinite(held) && (held != 0 || *value == 0))
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: got %.100R, expected a number that is %s in %s", name, given,
                 isfinite(held) ? "not 0" : "finite", type_name(type));
    return -1;
}

int fwm_word(PyObject *given, const char *name, const char *const *words, const char *expected)
{
    if (!PyUnicode_Check(given)) {
        PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected %s", name, Py_TYPE(given)->tp_name, expected);
        return -1;
    }
    for (int i = 0; words[i]; i++)
        if (PyUnicode_CompareWithASCIIString(given, words[i]) == 0)
            return i;
    PyErr_Format(PyExc_ValueError, "%s: got %.100R, expected %s", name, given, expected);
    return -1;
}

int fwm_check_pair(PyObject *given, const char *name, const char *expected)
{
    if (!PyTuple_Check(given)) {
        PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected %s", name, Py_TYPE(given)->tp_name, expected);
        return -1;
    }
    if (PyTuple_GET_SIZE(given) != 2) {
        PyErr_Format(PyExc_ValueError, "%s: got a tuple of %zd, expected %s", name, PyTuple_GET_SIZE(given), expected);
        return -1;
    }
    return 0;
}

int fwm_check_count(const char *function, Py_ssize_t got, Py_ssize_t expected)
{
    if (got == expected)
        return 0;
    PyErr_Format(PyExc_TypeError, "%s: got %zd arguments, expected %zd", function, got, expected);
    return -1;
}

int fwm_run(const FwmOperation *operation, const FwmPass *pass, const void *call)
{
    const int threads = fwm_num_threads();
    void *scratch = pass->scratch ? fwm_scratch(pass->scratch(call, threads)) : NULL;
    if (pass->scratch && !scratch) {
        PyErr_NoMemory();
        return -1;
    }
    Py_BEGIN_ALLOW_THREADS
    const bool flushed = fwm_loops_flush(operation->flushes_subnormals);
    pass->run(call, threads, scratch);
    fwm_loops_flush(flushed);
    Py_END_ALLOW_THREADS
    fwm_release_scratch(scratch);
    return 0;
}

const FwmKernels *fwm_kernels_for(PyArrayObject *array)
{
    return PyArray_TYPE(array) == NPY_FLOAT ? fwm_kernels_f32() : fwm_kernels_f64();
}

static int is_text(PyObject *name, const char *argument, const char **text)
{
    *text = PyUnicode_Check(name) ? PyUnicode_AsUTF8(name) : NULL;
    if (!*text && !PyErr_Occurred())
        PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected a string", argument, Py_TYPE(name)->tp_name);
    return *text != NULL;
}

Py_ssize_t fwm_find_map(PyObject *name, const char *argument)
{
    const char *text;
    if (!is_text(name, argument, &text))
        return -1;
    const FwmMapInfo *info;
    for (size_t row = 0; (info = fwm_kernels_f32()->map_info(row)); row++)
        if (strcmp(info->function, text) == 0 || strcmp(info->name, text) == 0)
            return (Py_ssize_t)row;
    PyErr_Format(PyExc_ValueError, "%s: got %R, expected the name of a feature map", argument, name);
    return -1;
}

Py_ssize_t fwm_find_readout(PyObject *name, const char *argument)
{
    const char *text;
    if (!is_text(name, argument, &text))
        return -1;
    const FwmReadoutInfo *info;
    for (size_t row = 0; (info = fwm_kernels_f32()->readout_info(row)); row++)
        if (strcmp(info->function, text) == 0 || strcmp(info->name, text) == 0)
            return (Py_ssize_t)row;
    PyErr_Format(PyExc_ValueError, "%s: got %R, expected the name of an update rule", argument, name);
    return -1;
}

Py_ssize_t fwm_find_rule(PyObject *name, const char *argument)
{
    const char *text;
    if (!is_text(name, argument, &text))
        return -1;
    const FwmRuleInfo *info;
    for (size_t row = 0; (info = fwm_kernels_f32()->rule_info(row)); row++)
        if (strcmp(info->function, text) == 0)
            return (Py_ssize_t)row;
    PyErr_Format(PyExc_ValueError, "%s: got %R, expected the name of a function of fwm_py.kernels", argument, name);
    return -1;
}
