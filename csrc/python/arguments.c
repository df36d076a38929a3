#include "python/arguments.h"

#include <math.h>
#include <string.h>

#include "api/dispatch.h"
#include "python/arrays.h"

#define TYPE_NAME(object) (Py_TYPE(object)->tp_name)

/* ---- numbers and words ---- */

int fwm_integer(PyObject *given, const char *name, long long low, long long high, long long *value)
{
    PyObject *index = PyNumber_Index(given);
    if (!index) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected an integer", name, TYPE_NAME(given));
        return -1;
    }
    int overflow;
    *value = PyLong_AsLongLongAndOverflow(index, &overflow);
    const bool fits = !overflow && *value >= low && *value <= high;
    if (!fits) {
        PyObject *digits = PyObject_Repr(index);
        if (!digits) { /* Python refuses to print integers of thousands of digits */
            PyErr_Clear();
            digits = PyUnicode_FromString("an integer of thousands of digits");
        }
        if (digits)
            PyErr_Format(PyExc_ValueError, "%s: got %.60U, expected an integer in %lld..%lld", name, digits, low, high);
        Py_XDECREF(digits);
    }
    Py_DECREF(index);
    return fits ? 0 : -1;
}

/* A number that `type` holds: finite, and 0 only if it was given as 0. */
static int read_number(PyObject *given, const FwmArgument *row, int type, double *value)
{
    *value = PyFloat_CheckExact(given) ? PyFloat_AS_DOUBLE(given) : PyFloat_AsDouble(given);
    if (*value == -1.0 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected a number", row->name, TYPE_NAME(given));
        else if (PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Format(PyExc_ValueError, "%s: got an integer beyond all floats, expected a finite number", row->name);
        return -1;
    }
    const double held = type == NPY_FLOAT ? (double)(float)*value : *value;
    const char *expected = !isfinite(held)                   ? "finite"
                           : held == 0 && *value != 0        ? "not 0"
                           : row->not_negative && *value < 0 ? "not negative"
                           : row->positive && *value <= 0    ? "above 0"
                                                             : NULL;
    if (!expected)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: got %.100R, expected a number that is %s in %s", row->name, given, expected,
                 type == NPY_FLOAT ? "float32" : "float64");
    return -1;
}

/* "None, 'l2' or 'sum'", behind "name: got ..". */
static int refuse_word(const FwmArgument *row, PyObject *exception, PyObject *got)
{
    PyObject *expected = PyUnicode_FromString(row->optional ? "None" : "");
    for (int i = 0; expected && got && row->words[i]; i++) {
        const char *before = i == 0 && !row->optional ? "" : row->words[i + 1] ? ", " : " or ";
        PyObject *longer = PyUnicode_FromFormat("%U%s'%s'", expected, before, row->words[i]);
        Py_SETREF(expected, longer);
    }
    if (expected && got)
        PyErr_Format(exception, "%s: got %.100U, expected %U", row->name, got, expected);
    Py_XDECREF(expected);
    Py_XDECREF(got);
    return -1;
}

static int read_word(FwmArguments *a, size_t i)
{
    const FwmArgument *row = &a->signature->arguments[i];
    PyObject *given = a->given[i], *const *words = a->signature->words[i];
    int *value = &a->values[i].word;
    for (int k = 0; k < FWM_MOST_WORDS && words[k]; k++)
        if (words[k] == given) { /* the very object, as a rule */
            *value = row->optional ? k + 1 : k;
            return 0;
        }
    if (!PyUnicode_Check(given))
        return refuse_word(row, PyExc_TypeError, PyUnicode_FromString(TYPE_NAME(given)));
    for (int k = 0; row->words[k]; k++)
        if (PyUnicode_CompareWithASCIIString(given, row->words[k]) == 0) {
            *value = row->optional ? k + 1 : k;
            return 0;
        }
    return refuse_word(row, PyExc_ValueError, PyObject_Repr(given));
}

int fwm_check_pair(PyObject *given, const char *name, const char *expected)
{
    if (!PyTuple_Check(given)) {
        PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected %s", name, TYPE_NAME(given), expected);
        return -1;
    }
    if (PyTuple_GET_SIZE(given) != 2) {
        PyErr_Format(PyExc_ValueError, "%s: got a tuple of %zd, expected %s", name, PyTuple_GET_SIZE(given), expected);
        return -1;
    }
    return 0;
}

/* ---- shapes ---- */

static void *place(const FwmArguments *a, size_t at)
{
    return a->call && at ? (char *)a->call + at - 1 : NULL;
}

static int store_size(const FwmArguments *a, size_t at, size_t size)
{
    size_t *to = place(a, at);
    if (to)
        *to = size;
    return 0;
}

int fwm_bind(FwmArguments *a, int letter, npy_intp size, const char *name)
{
    if (letter < 0)
        return 0;
    const FwmSize *row = &a->signature->sizes[letter];
    a->sizes[letter] = size;
    if (size < row->least && !row->most)
        PyErr_Format(PyExc_ValueError, "%s: got %s = %zd, expected at least %zd", name, row->letter, size, row->least);
    else if (size < row->least || (row->most && size > row->most))
        PyErr_Format(PyExc_ValueError, "%s: got %s = %zd, expected %zd to %zd", name, row->letter, size, row->least,
                     row->most);
    else
        return store_size(a, row->at, (size_t)size);
    return -1;
}

int fwm_axes(const FwmArguments *a, const FwmShape *shape, npy_intp axes[NPY_MAXDIMS])
{
    const int leading = shape->leading ? a->leading_rank : 0;
    for (int i = 0; i < leading; i++)
        axes[i] = a->leading[i];
    for (int i = 0; i < shape->rank; i++) {
        const npy_intp size = a->sizes[shape->letters[i]];
        axes[leading + i] = size < 0 ? -1 : size - shape->less[i];
    }
    return leading + shape->rank;
}

/* The array gives "..." its axes, where it has enough of them. */
static int bind_leading(FwmArguments *a, const FwmShape *shape, PyArrayObject *array, const char *name)
{
    a->leading_rank = PyArray_NDIM(array) - shape->rank;
    if (a->leading_rank < 0)
        a->leading_rank = 0;
    npy_intp rows = 1;
    for (int i = 0; i < a->leading_rank; i++)
        rows *= a->leading[i] = PyArray_DIM(array, i);
    return fwm_bind(a, a->signature->rows, rows, name);
}

static int refuse_shape(const FwmArguments *a, size_t i, const FwmShape *shape, PyArrayObject *array, const char *name)
{
    npy_intp axes[NPY_MAXDIMS];
    const int rank = fwm_axes(a, shape, axes);
    const FwmArgument *row = &a->signature->arguments[i];
    return fwm_check_shape(array, name, row->swapped ? shape->text : row->shape, rank, axes);
}

static bool has_leading(const FwmArguments *a, PyArrayObject *array)
{
    for (int i = 0; i < a->leading_rank; i++)
        if (PyArray_DIM(array, i) != a->leading[i])
            return false;
    return true;
}

/* Checks the array against the shape of its row, and binds the letters that are new. */
static int fit_shape(FwmArguments *a, size_t i, PyArrayObject *array, const char *name)
{
    const FwmShape *shapes = a->signature->shapes[i];
    const bool is_second = a->signature->arguments[i].swapped ? a->swapped : PyArray_NDIM(array) == shapes[1].rank;
    const FwmShape *shape = shapes[1].text && is_second ? &shapes[1] : &shapes[0];
    if (shape->leading && a->leading_rank < 0 && bind_leading(a, shape, array, name) < 0)
        return -1;
    const int leading = shape->leading ? a->leading_rank : 0;
    bool fits = PyArray_NDIM(array) == leading + shape->rank && (!leading || has_leading(a, array));
    for (int k = 0; fits && k < shape->rank; k++) {
        const npy_intp bound = a->sizes[shape->letters[k]];
        fits = bound < 0 || PyArray_DIM(array, leading + k) == bound - shape->less[k];
    }
    if (!fits)
        return refuse_shape(a, i, shape, array, name);
    for (int k = 0; k < shape->rank; k++) {
        const npy_intp size = PyArray_DIM(array, leading + k) + shape->less[k];
        if (a->sizes[shape->letters[k]] < 0 && fwm_bind(a, shape->letters[k], size, name) < 0)
            return -1;
    }
    return 0;
}

/* ---- arrays ---- */

/* The first array says in which type the call computes. */
static void choose_type(FwmArguments *a, PyArrayObject *array, const char *name)
{
    a->half = fwm_numbers_of(array);
    a->type = a->half == FWM_REAL ? PyArray_TYPE(array) : NPY_FLOAT;
    a->like = name;
    a->kernels = a->type == NPY_FLOAT ? fwm_kernels_f32() : fwm_kernels_f64();
}

/* Tokens in 16 bits, as the first array has them; and tokens in 32 bits beside such. */
static bool is_half(const FwmArguments *a, const FwmArgument *row, PyArrayObject *came)
{
    const FwmNumbers half = row->halves ? fwm_numbers_of(came) : FWM_REAL;
    return half != FWM_REAL && (!a->type || a->half == half);
}

static PyArrayObject *half_array(PyArrayObject *came)
{
    PyArray_Descr *dtype = (PyArray_Descr *)Py_NewRef(PyArray_DESCR(came));
    return (PyArrayObject *)PyArray_FromArray(came, dtype, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_NOTSWAPPED);
}

/* In a call that may be, or is, of tokens in 16 bits. */
static PyArrayObject *refuse_type(const FwmArguments *a, bool halves, PyArrayObject *came, const char *name)
{
    const char *half = fwm_type_name(a->type, a->half);
    PyObject *got = (PyObject *)PyArray_DESCR(came);
    if (!a->type)
        PyErr_Format(PyExc_TypeError, "%s: got %S, expected float32, float64, bfloat16 or float16", name, got);
    else
        PyErr_Format(PyExc_TypeError, "%s: got %S, expected %s%sfloat32, as %s has %s", name, got, halves ? half : "",
                     halves ? " or " : "", a->like, half);
    return NULL;
}

/* The array as the kernel reads it, where it is not the one that came. */
static PyArrayObject *convert(const FwmArguments *a, const FwmArgument *row, PyArrayObject *came, const char *name)
{
    if (row->stored == FWM_FLOAT32_OR_FLOAT64)
        return fwm_converted_array((PyObject *)came, name, a->type);
    const int got = PyArray_TYPE(came);
    const bool fits = a->type ? got == a->type : got == NPY_FLOAT || got == NPY_DOUBLE, half = is_half(a, row, came);
    if ((fits || half) && row->kind == FWM_TOKENS && a->direction == FWM_FORWARD && fwm_can_stay(came))
        return (PyArrayObject *)Py_NewRef(came);
    if (half)
        return half_array(came);
    if (!fits && (a->type ? a->half != FWM_REAL : row->halves))
        return refuse_type(a, row->halves, came, name);
    return fwm_real_array((PyObject *)came, name, a->type, a->like);
}

static PyArrayObject *take_array(FwmArguments *a, size_t i, PyObject *given, const char *name)
{
    const FwmArgument *row = &a->signature->arguments[i];
    PyArrayObject *array = NULL, *came = NULL;
    if (row->in_place) {
        npy_intp axes[NPY_MAXDIMS];
        const int rank = fwm_axes(a, &a->signature->shapes[i][0], axes);
        array = fwm_output_array(given, name, a->type, FWM_REAL, a->like, row->shape, rank, axes);
    } else if (row->stored == FWM_AS_COMPUTED && fwm_is_real_array(given, a->type)) {
        array = (PyArrayObject *)Py_NewRef(given);
    } else {
        came = fwm_any_array(given, name);
        array = came ? convert(a, row, came, name) : NULL;
        if (array == came)
            Py_CLEAR(came);
    }
    a->arrays[i] = array;
    a->came[i] = came;
    a->held |= (uint32_t)1 << i;
    return array;
}

static int read_array(FwmArguments *a, size_t i, PyObject *given, const char *name)
{
    const FwmArgument *row = &a->signature->arguments[i];
    PyArrayObject *array = take_array(a, i, given, name);
    if (!array)
        return -1;
    if (!a->type)
        choose_type(a, array, row->name);
    if (fit_shape(a, i, array, name) < 0)
        return -1;
    void *to = place(a, row->at);
    if (to && row->kind == FWM_TOKENS)
        *(FwmTokens *)to = fwm_tokens_of(array);
    else if (to)
        *(const void **)to = PyArray_DATA(array);
    return 0;
}

/* A state: an array, or two where states are pairs. */
static int read_state(FwmArguments *a, size_t i)
{
    const FwmArgument *row = &a->signature->arguments[i];
    PyObject *given = a->given[i];
    if (!a->paired)
        return read_array(a, i, given, row->name);
    if (fwm_check_pair(given, row->name, row->expected) < 0 ||
        read_array(a, i, PyTuple_GET_ITEM(given, 0), row->first) < 0)
        return -1;
    return read_array(a, i + 1, PyTuple_GET_ITEM(given, 1), row[1].name);
}

static int read_indices(FwmArguments *a, size_t i)
{
    const FwmArgument *row = &a->signature->arguments[i];
    npy_intp axes[NPY_MAXDIMS];
    const int rank = fwm_axes(a, &a->signature->shapes[i][0], axes);
    const int from = a->signature->from[i];
    const int letter = a->signature->below[i];
    const npy_intp low = from < 0 ? (npy_intp)row->low : a->sizes[from];
    const npy_intp high = letter < 0 ? INT32_MAX : a->sizes[letter] - !row->or_equal;
    a->arrays[i] = fwm_index_array(a->given[i], row->name, row->shape, rank, axes, low, high);
    a->came[i] = NULL;
    a->held |= (uint32_t)1 << i;
    if (!a->arrays[i] || fit_shape(a, i, a->arrays[i], row->name) < 0)
        return -1;
    *(const void **)place(a, row->at) = PyArray_DATA(a->arrays[i]);
    return 0;
}

static int read_sequences(FwmArguments *a, size_t i)
{
    const FwmSignature *s = a->signature;
    PyObject *given = a->given[i] ? a->given[i] : Py_None;
    if (fwm_read_sequences(&a->sequences, given, a->sizes[s->B], a->sizes[s->T]) < 0)
        return -1;
    return fwm_bind(a, s->n, a->sequences.n, s->arguments[i].name);
}

/* ---- a row at a time ---- */

static int read_scalar(FwmArguments *a, size_t i)
{
    const FwmArgument *row = &a->signature->arguments[i];
    PyObject *given = a->given[i];
    FwmValue *value = &a->values[i];
    void *to = place(a, row->at);
    switch (row->kind) {
    case FWM_FLAG:
        if (given && !PyBool_Check(given))
            return PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected True or False", row->name, TYPE_NAME(given)),
                   -1;
        value->flag = given ? given == Py_True : row->preset != 0;
        return to ? (*(bool *)to = value->flag, 0) : 0;
    case FWM_NUMBER:
        value->number = row->preset;
        if (given && read_number(given, row, a->type, &value->number) < 0)
            return -1;
        return to ? (*(double *)to = value->number, 0) : 0;
    case FWM_WORD:
        value->word = 0;
        if (given && read_word(a, i) < 0)
            return -1;
        return to ? (*(unsigned *)to = (unsigned)value->word, 0) : 0;
    case FWM_INTEGER:
        if (!given)
            return 0;
        if (fwm_integer(given, row->name, row->low, row->high, &value->integer) < 0)
            return -1;
        return store_size(a, row->at, (size_t)value->integer);
    default:
        if ((value->integer = fwm_find(row->table, given, row->name)) < 0)
            return -1;
        return store_size(a, row->at, (size_t)value->integer);
    }
}

static int read_row(FwmArguments *a, size_t i)
{
    const FwmArgument *row = &a->signature->arguments[i];
    switch (row->kind) {
    case FWM_ARRAY:
    case FWM_TOKENS: return !a->given[i] ? 0 : row->first ? read_state(a, i) : read_array(a, i, a->given[i], row->name);
    case FWM_INDICES: return read_indices(a, i);
    case FWM_SEQUENCES: return read_sequences(a, i);
    case FWM_OBJECT:
    case FWM_STEP: return 0;
    default: return read_scalar(a, i);
    }
}

static int refuse_row(const FwmArguments *a, size_t i)
{
    const FwmArgument *row = &a->signature->arguments[i];
    if (a->given[i])
        PyErr_Format(PyExc_ValueError, "%s: got %.100s, expected None, because it has no effect here", row->name,
                     TYPE_NAME(a->given[i]));
    else
        PyErr_Format(PyExc_TypeError, "%s: got nothing, expected a value, which %s needs", row->name,
                     a->signature->name);
    return -1;
}

static int read_rows(FwmArguments *a)
{
    const FwmSignature *s = a->signature;
    const uint32_t optional_arrays = s->is_array & s->has_preset & ~s->has_step;
    for (uint32_t left = s->all & ~a->absent; left; left &= left - 1) {
        const int i = __builtin_ctz(left);
        const uint32_t bit = (uint32_t)1 << i;
        if ((a->is_given & bit) && a->given[i] == Py_None && ((a->absent | s->none_is_nothing) & bit))
            a->is_given &= ~bit;
        const bool is_given = a->is_given & bit;
        if (!is_given)
            a->given[i] = NULL;
        if (!is_given && ((a->absent | optional_arrays) & bit))
            continue;
        if (is_given ? a->absent & bit : ~s->has_preset & bit)
            return refuse_row(a, (size_t)i);
        if (read_row(a, (size_t)i) < 0 || ((s->has_step & bit) && s->arguments[i].then(a) < 0))
            return -1;
    }
    return 0;
}

/* ---- what is given ---- */

/* The row of a name, looked for from `start` on, where it is if arguments come in the order of the rows. */
static Py_ssize_t row_of(const FwmSignature *s, PyObject *name, size_t start)
{
    for (size_t i = start; i < s->n_arguments; i++)
        if (s->names[i] == name)
            return (Py_ssize_t)i;
    for (size_t i = 0; i < start; i++)
        if (s->names[i] == name)
            return (Py_ssize_t)i;
    for (size_t i = 0; i < s->n_arguments; i++)
        if (PyUnicode_Compare(s->names[i], name) == 0) /* it need not be interned */
            return (Py_ssize_t)i;
    return -1;
}

static int give(FwmArguments *a, PyObject *name, PyObject *value, size_t *next)
{
    const FwmSignature *s = a->signature;
    const Py_ssize_t i = row_of(s, name, *next);
    if (i < 0 || (a->absent >> i & 1)) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_TypeError, "%U: got a value, expected no such argument of %s", name, s->name);
        return -1;
    }
    if (a->is_given >> i & 1) {
        PyErr_Format(PyExc_TypeError, "%U: got two values, expected one", name);
        return -1;
    }
    a->given[i] = value;
    a->is_given |= (uint32_t)1 << i;
    *next = (size_t)i + 1;
    return 0;
}

static void begin(FwmArguments *a, const FwmSignature *signature)
{
    a->signature = signature;
    a->direction = a->direction ? a->direction : FWM_BOTH;
    a->absent |= a->direction == FWM_BOTH ? 0 : signature->of_other_direction[a->direction - 1];
    a->type = a->type ? a->type : signature->type;
    a->leading_rank = -1;
    for (size_t i = 0; i < signature->n_sizes; i++)
        a->sizes[i] = -1;
    a->is_given = a->held = 0;
    a->sequences.n = 0;
    a->sequences.offsets = NULL;
}

static int give_positional(FwmArguments *a, PyObject *const *args, Py_ssize_t n)
{
    if (n > (Py_ssize_t)a->signature->n_positional) {
        PyErr_Format(PyExc_TypeError, "%s: got %zd arguments without a name, expected at most %zu", a->signature->name,
                     n, a->signature->n_positional);
        return -1;
    }
    for (Py_ssize_t i = 0; i < n; i++)
        a->given[i] = args[i];
    a->is_given = ((uint32_t)1 << n) - 1;
    return 0;
}

int fwm_read_arguments(FwmArguments *a, const FwmSignature *signature, PyObject *const *args, Py_ssize_t n,
                       PyObject *names)
{
    begin(a, signature);
    if (give_positional(a, args, n) < 0)
        return -1;
    const Py_ssize_t n_names = names ? PyTuple_GET_SIZE(names) : 0;
    size_t next = (size_t)n;
    for (Py_ssize_t i = 0; i < n_names; i++) {
        PyObject *name = PyTuple_GET_ITEM(names, i);
        const bool is_next = next < signature->n_arguments && signature->names[next] == name;
        if (!is_next || a->is_given >> next & 1) {
            if (give(a, name, args[n + i], &next) < 0)
                return -1;
            continue;
        }
        a->given[next] = args[n + i];
        a->is_given |= (uint32_t)1 << next++;
    }
    return read_rows(a);
}

int fwm_read_new(FwmArguments *a, const FwmSignature *signature, PyObject *args, PyObject *kwargs)
{
    begin(a, signature);
    if (give_positional(a, PySequence_Fast_ITEMS(args), PyTuple_GET_SIZE(args)) < 0)
        return -1;
    size_t next = (size_t)PyTuple_GET_SIZE(args);
    PyObject *name, *value;
    for (Py_ssize_t i = 0; kwargs && PyDict_Next(kwargs, &i, &name, &value);)
        if (give(a, name, value, &next) < 0)
            return -1;
    return read_rows(a);
}

void fwm_release_arguments(FwmArguments *a)
{
    for (uint32_t held = a->held; held; held &= held - 1) {
        const int i = __builtin_ctz(held);
        Py_XDECREF(a->arrays[i]);
        Py_XDECREF(a->came[i]);
    }
    if (a->sequences.offsets)
        fwm_release_sequences(&a->sequences);
}
