#include "python/arrays.h"

#include <math.h>
#include <stdint.h>
#include <string.h>

const char *fwm_type_name(int type, FwmNumbers half)
{
    return half == FWM_BFLOAT16  ? "bfloat16"
           : half == FWM_FLOAT16 ? "float16"
           : type == NPY_FLOAT   ? "float32"
                                 : "float64";
}

/* ---- numbers of 16 bits ---- */

/* Whether a structure of two bytes is one field "bfloat16" of uint16. */
static bool is_field_bfloat16(PyArray_Descr *dtype)
{
    PyObject *fields = PyDataType_FIELDS(dtype), *field = fields ? PyDict_GetItemString(fields, "bfloat16") : NULL;
    PyArray_Descr *numbers = field ? (PyArray_Descr *)PyTuple_GET_ITEM(field, 0) : NULL;
    return numbers && numbers->type_num == NPY_UINT16 && PyArray_ISNBO(numbers->byteorder);
}

/* A type that a package has added is known by its name only. */
static bool is_named_bfloat16(PyArray_Descr *dtype)
{
    const char *name = dtype->typeobj->tp_name, *dot = strrchr(name, '.');
    return strcmp(dot ? dot + 1 : name, "bfloat16") == 0;
}

FwmNumbers fwm_numbers_of(PyArrayObject *array)
{
    PyArray_Descr *dtype = PyArray_DESCR(array);
    const int type = dtype->type_num;
    if (type == NPY_HALF)
        return FWM_FLOAT16;
    const bool is_bfloat16 = type == NPY_VOID            ? is_field_bfloat16(dtype)
                             : PyTypeNum_ISUSERDEF(type) ? is_named_bfloat16(dtype)
                                                         : false;
    return is_bfloat16 && PyDataType_ELSIZE(dtype) == 2 ? FWM_BFLOAT16 : FWM_REAL;
}

/* ---- arrays of numbers ---- */

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

static int check_unmasked(PyObject *given, const char *name)
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
    if (check_unmasked(given, name) < 0)
        return NULL;
    PyArrayObject *any = (PyArrayObject *)PyArray_FROM_O(given);
    if (!any && PyErr_ExceptionMatches(PyExc_ValueError))
        PyErr_Format(PyExc_ValueError, "%s: got %.100s, expected an array, or lists of the same length", name,
                     Py_TYPE(given)->tp_name);
    return any;
}

PyArrayObject *fwm_real_array(PyObject *given, const char *name, int type, const char *like)
{
    if (fwm_is_real_array(given, type))
        return (PyArrayObject *)Py_NewRef(given);
    PyArrayObject *any = fwm_any_array(given, name);
    if (!any)
        return NULL;
    const int got = PyArray_TYPE(any);
    if ((got != NPY_FLOAT && got != NPY_DOUBLE) || (type && got != type)) {
        if (type)
            PyErr_Format(PyExc_TypeError, "%s: got %S, expected %s, as %s has", name, (PyObject *)PyArray_DESCR(any),
                         fwm_type_name(type, FWM_REAL), like);
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

PyArrayObject *fwm_converted_array(PyObject *given, const char *name, int type)
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

int fwm_check_shape(PyArrayObject *array, const char *name, const char *text, int rank, const npy_intp *shape)
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
        PyErr_Format(PyExc_ValueError, "%s: got shape %S, expected %s, here %S", name, got, text, expected);
    Py_XDECREF(got);
    Py_XDECREF(expected);
    return -1;
}

/* out = in - low; -1 if a number is outside low..high. One loop without an exit and, because SSE2 cannot compare 64
 * bits, without comparisons, for the compiler to vectorise: a distance beyond high - low has its uppermost bit set, or
 * what is left of high - low has. Unsigned, because of a number outside the signed difference may overflow. */
static int narrow(const int64_t *restrict in, npy_intp n, int64_t low, int64_t high, int32_t *restrict out)
{
    const uint64_t most = (uint64_t)high - (uint64_t)low;
    uint64_t outside = 0;
    for (npy_intp i = 0; i < n; i++) {
        const uint64_t distance = (uint64_t)in[i] - (uint64_t)low;
        outside |= distance | (most - distance);
        out[i] = (int32_t)distance;
    }
    return outside >> 63 ? -1 : 0;
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

PyArrayObject *fwm_index_array(PyObject *given, const char *name, const char *text, int rank, const npy_intp *shape,
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
    if (fwm_check_shape(any, name, text, rank, shape) == 0)
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

int fwm_check_distinct(const int32_t *numbers, npy_intp n, int32_t low, npy_intp below, const char *name)
{
    npy_intp i = 0;
    char *seen = PyMem_Calloc((size_t)below + 1, 1);
    if (!seen) {
        PyErr_NoMemory();
        return -1;
    }
    while (i < n && (numbers[i] < low || !seen[numbers[i] - low]++))
        i += 1;
    if (i < n)
        PyErr_Format(PyExc_ValueError, "%s[%zd]: got %d again, expected each number once", name, i,
                     (int)(numbers[i] - low));
    PyMem_Free(seen);
    return i < n ? -1 : 0;
}

/* ---- tokens where they stand ---- */

/* Bytes of a token's numbers, if these lie side by side; else -1. */
static npy_intp bytes_of_token(PyArrayObject *x)
{
    npy_intp bytes = PyArray_ITEMSIZE(x);
    for (int i = PyArray_NDIM(x) - 1; i >= 2; i--) {
        if (PyArray_DIM(x, i) > 1 && PyArray_STRIDE(x, i) != bytes)
            return -1;
        bytes *= PyArray_DIM(x, i);
    }
    return bytes;
}

/* Bytes from a token to the next, which may be another sequence's. */
static npy_intp bytes_between_tokens(PyArrayObject *x)
{
    const bool one = PyArray_DIM(x, 0) <= 1 && PyArray_DIM(x, 1) <= 1;
    return one ? bytes_of_token(x) : PyArray_STRIDE(x, PyArray_DIM(x, 1) > 1);
}

bool fwm_can_stay(PyArrayObject *x)
{
    if (!PyArray_CheckExact(x) || PyArray_NDIM(x) < 3 || !PyArray_ISALIGNED(x) || !PyArray_ISNOTSWAPPED(x) ||
        PyArray_SIZE(x) == 0)
        return false;
    const npy_intp bytes = bytes_of_token(x), between = bytes_between_tokens(x), B = PyArray_DIM(x, 0),
                   T = PyArray_DIM(x, 1);
    return bytes > 0 && between >= bytes && between % PyArray_ITEMSIZE(x) == 0 &&
           (B <= 1 || PyArray_STRIDE(x, 0) == T * between);
}

FwmTokens fwm_tokens_of(PyArrayObject *x)
{
    return (FwmTokens){PyArray_DATA(x), (size_t)(bytes_between_tokens(x) / PyArray_ITEMSIZE(x)), fwm_numbers_of(x)};
}

/* ---- to write into ---- */

PyArrayObject *fwm_output_array(PyObject *given, const char *name, int type, FwmNumbers half, const char *like,
                                const char *text, int rank, const npy_intp *shape)
{
    const char *expected = fwm_type_name(type, half);
    if (!PyArray_Check(given))
        return (PyArrayObject *)PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected an array", name,
                                             Py_TYPE(given)->tp_name);
    PyArrayObject *array = (PyArrayObject *)given;
    if (check_unmasked(given, name) < 0)
        return NULL;
    const bool fits = half == FWM_REAL ? PyArray_TYPE(array) == type : fwm_numbers_of(array) == half;
    if (!fits || !PyArray_ISNOTSWAPPED(array))
        return (PyArrayObject *)PyErr_Format(PyExc_TypeError, "%s: got %S, expected %s in native byte order, as %s has",
                                             name, (PyObject *)PyArray_DESCR(array), expected, like);
    if (fwm_check_shape(array, name, text, rank, shape) < 0)
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

FwmBounds fwm_bounds(PyArrayObject *array)
{
    const uintptr_t data = (uintptr_t)PyArray_DATA(array);
    FwmBounds bounds = {data, data + (uintptr_t)PyArray_ITEMSIZE(array)};
    for (int i = 0; i < PyArray_NDIM(array); i++) {
        const npy_intp reach = (PyArray_DIM(array, i) - 1) * PyArray_STRIDE(array, i);
        if (PyArray_DIM(array, i) == 0)
            return (FwmBounds){data, data};
        *(reach < 0 ? &bounds.low : &bounds.high) += (uintptr_t)reach;
    }
    return bounds;
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

int fwm_check_apart(PyArrayObject *out, FwmBounds of_out, const char *name, PyArrayObject *other,
                    const char *other_name)
{
    const FwmBounds of_other = fwm_bounds(other);
    if (of_out.high <= of_other.low || of_other.high <= of_out.low || of_other.low == of_other.high)
        return 0;
    const int shares = PyArray_ISONESEGMENT(other) ? 1 : shares_memory(out, other);
    if (shares > 0)
        PyErr_Format(PyExc_ValueError, "%s: got memory of %s, expected memory of its own", name, other_name);
    return shares == 0 ? 0 : -1;
}
