/* The argument cu_seqlens, and the offsets of rows of the same length. */
#include "python/sequences.h"

#include "python/arrays.h"

/* Room for n + 1 offsets. */
static int make_room(FwmSequences *s)
{
    s->offsets = s->n < FEW_OFFSETS ? s->few : PyMem_New(int64_t, s->n + 1);
    if (s->offsets)
        return 0;
    PyErr_NoMemory();
    return -1;
}

int fwm_make_offsets(FwmSequences *s, npy_intp T)
{
    if (s->offsets)
        return 0;
    if (make_room(s) < 0)
        return -1;
    for (npy_intp b = 0; b <= s->n; b++)
        s->offsets[b] = b * T;
    return 0;
}

static int copy_offsets(FwmSequences *s, PyArrayObject *given, npy_intp T, int is_unsigned)
{
    const int64_t *in = PyArray_DATA(given);
    if (make_room(s) < 0)
        return -1;
    for (npy_intp i = 0; i <= s->n; i++) {
        const int64_t at = s->offsets[i] = in[i];
        if (at >= (i ? s->offsets[i - 1] : 0) && at <= (i ? T : 0) && (i < s->n || at == T))
            continue;
        PyErr_Format(PyExc_ValueError,
                     is_unsigned ? "cu_seqlens[%zd]: got %llu, expected non-decreasing numbers from 0 to T, here %zd"
                                 : "cu_seqlens[%zd]: got %lld, expected non-decreasing numbers from 0 to T, here %zd",
                     i, (long long)at, T); /* an unsigned number beyond int64 has become negative */
        return -1;
    }
    return 0;
}

int fwm_read_sequences(FwmSequences *s, PyObject *cu_seqlens, npy_intp B, npy_intp T)
{
    s->n = B;
    if (cu_seqlens == Py_None)
        return 0;
    PyArrayObject *any = fwm_any_array(cu_seqlens, "cu_seqlens"), *wide = NULL;
    int status = -1;
    if (!any)
        return -1;
    if (!PyTypeNum_ISINTEGER(PyArray_TYPE(any))) {
        PyErr_Format(PyExc_TypeError, "cu_seqlens: got %S, expected integers", (PyObject *)PyArray_DESCR(any));
    } else if (PyArray_NDIM(any) != 1 || PyArray_SIZE(any) < 1) {
        PyErr_Format(PyExc_ValueError, "cu_seqlens: got %d axes and %zd numbers, expected shape (n + 1,)",
                     PyArray_NDIM(any), PyArray_SIZE(any));
    } else if (B != 1) {
        PyErr_Format(PyExc_ValueError, "cu_seqlens: got B = %zd, expected 1 where sequences are packed", B);
    } else {
        s->n = PyArray_SIZE(any) - 1;
        wide = (PyArrayObject *)PyArray_FromArray(any, PyArray_DescrFromType(NPY_INT64),
                                                  NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST);
        status = wide ? copy_offsets(s, wide, T, PyTypeNum_ISUNSIGNED(PyArray_TYPE(any))) : -1;
    }
    Py_XDECREF(wide);
    Py_DECREF(any);
    return status;
}

void fwm_release_sequences(FwmSequences *s)
{
    if (s->offsets != s->few)
        PyMem_Free(s->offsets);
}
