/* Arrays from Python, checked and converted once, and arrays to write into.
 *
 * Every function that returns NULL or -1 has set an exception of the form "name: got .., expected ..". Arrays come back
 * as new references: contiguous, aligned, in native byte order; the given ones are never changed. */
#ifndef FWM_PYTHON_ARRAYS_H
#define FWM_PYTHON_ARRAYS_H

#include "api/kernels.h"
#include "python/numpy_api.h"

/* An array of any type, as NumPy makes one of what is given; masked entries are refused. */
PyArrayObject *fwm_any_array(PyObject *given, const char *name);

/* An array of float32 or float64; type 0 accepts both, else NPY_FLOAT or NPY_DOUBLE is asked for because `like` has it.
 */
PyArrayObject *fwm_real_array(PyObject *given, const char *name, int type, const char *like);

/* How an array's numbers are stored if that is in 16 bits: NumPy's float16, the bfloat16 of the package ml_dtypes, or a
 * field "bfloat16" of the same bits as uint16, which needs no package. FWM_REAL for anything else. */
FwmNumbers fwm_numbers_of(PyArrayObject *array);

/* "float32", "float64", "bfloat16", "float16" */
const char *fwm_type_name(int type, FwmNumbers half);

/* The same, but of either precision, converted to `type`, which must hold its numbers. */
PyArrayObject *fwm_converted_array(PyObject *given, const char *name, int type);

/* Whether fwm_real_array would give back what is given: as a rule it is so. */
static inline bool fwm_is_real_array(PyObject *given, int type)
{
    if (!PyArray_CheckExact(given) || !PyArray_ISCARRAY_RO((PyArrayObject *)given))
        return false;
    const int got = PyArray_TYPE((PyArrayObject *)given);
    return type ? got == type : got == NPY_FLOAT || got == NPY_DOUBLE;
}

/* Integers of any type in low..high, less low, as int32. They have this shape (rank numbers, -1 for any; `text` says
 * it). */
PyArrayObject *fwm_index_array(PyObject *given, const char *name, const char *text, int rank, const npy_intp *shape,
                               long long low, long long high);

/* 0, or -1 with an exception if two of n numbers from low on, below `below`, are the same. */
int fwm_check_distinct(const int32_t *numbers, npy_intp n, int32_t low, npy_intp below, const char *name);

/* Whether a kernel can read this array of tokens (B, T, ..) where it stands: contiguous, or a part of each token of a
 * larger array, as queries, keys and values are that come from one projection. Its type is another matter. */
bool fwm_can_stay(PyArrayObject *array);
FwmTokens fwm_tokens_of(PyArrayObject *array);

/* 0, or -1 with the exception for a shape that does not fit. */
int fwm_check_shape(PyArrayObject *array, const char *name, const char *text, int rank, const npy_intp *shape);

/* The given array if it can be written as it stands: of this type (or, unless FWM_REAL, in 16 bits), which `like` has,
 * and shape, in native byte order, C-contiguous, aligned. */
PyArrayObject *fwm_output_array(PyObject *given, const char *name, int type, FwmNumbers half, const char *like,
                                const char *text, int rank, const npy_intp *shape);

/* Where the bytes of an array lie: from low to before high; nowhere without numbers. */
typedef struct {
    uintptr_t low, high;
} FwmBounds;

FwmBounds fwm_bounds(PyArrayObject *array);

/* 0, or -1 with an exception if `out`, which is contiguous and has these bounds, shares memory with `other`. */
int fwm_check_apart(PyArrayObject *out, FwmBounds of_out, const char *name, PyArrayObject *other,
                    const char *other_name);

/* The numbers of an array, which may be NULL. */
static inline void *fwm_data(PyArrayObject *array)
{
    return array ? PyArray_DATA(array) : NULL;
}

#endif
