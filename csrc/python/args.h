/* Arguments from Python, checked and converted once. Include after Python.h and NumPy's arrayobject.h.
 *
 * Every function that returns NULL or -1 has set a TypeError or ValueError of the form "name: got .., expected ..".
 * Arrays come back as new references: contiguous, aligned, in native byte order; the given ones are never changed. */
#ifndef FWM_PYTHON_ARGS_H
#define FWM_PYTHON_ARGS_H

#include "api/kernels.h"

/* 0, or -1 with an exception if this is a masked array, or a list with one, that has masked entries. */
int fwm_check_unmasked(PyObject *given, const char *name);

/* An array of any type, as NumPy makes one of what is given. */
PyArrayObject *fwm_any_array(PyObject *given, const char *name);

/* An array of float32 or float64; type 0 accepts both, else NPY_FLOAT or NPY_DOUBLE is asked for because `like` has it.
 */
PyArrayObject *fwm_real_array(PyObject *given, const char *name, int type, const char *like);

/* The same of an input that an out must not overlap; *came: the array on the memory that it came in, whatever object
 * that is. Both are new references, NULL with an exception. */
PyArrayObject *fwm_real_input(PyObject *given, const char *name, int type, const char *like, PyArrayObject **came);

/* The same as fwm_real_array, but of either precision, converted to `type`, which must hold its numbers. */
PyArrayObject *fwm_real_array_as(PyObject *given, const char *name, int type);

/* The shape must be this one (rank numbers; -1 stands for any); `letters` says it in words, as "(B, L, p)". */
int fwm_check_shape(PyArrayObject *array, const char *name, const char *letters, int rank, const npy_intp *shape);

/* Integers of any type in low..high, less low, as int32. */
PyArrayObject *fwm_index_array(PyObject *given, const char *name, const char *letters, int rank, const npy_intp *shape,
                               long long low, long long high);

/* An array that can be written as it stands: of this type, which `like` has, and shape, in native byte order,
 * C-contiguous, aligned. */
PyArrayObject *fwm_output_array(PyObject *given, const char *name, int type, const char *like, const char *letters,
                                int rank, const npy_intp *shape);

/* 0, or -1 with an exception if `out`, which is contiguous, shares memory with `other`. */
int fwm_check_apart(PyArrayObject *out, const char *name, PyArrayObject *other, const char *other_name);

/* An array that is read, or written elsewhere, and its name. */
typedef struct {
    PyArrayObject *array;
    const char *name;
} FwmNamedArray;

/* An array to write, of an input's shape: new if `given` is NULL, else the one given, which can be written and is apart
 * from others. */
PyArrayObject *fwm_array_like(PyObject *given, const char *name, PyArrayObject *input, const char *like,
                              const FwmNamedArray *others, size_t n_others);

/* The tuple of gradients to write into, of so many. */
int fwm_check_gradients(PyObject *out, Py_ssize_t n);

/* A call's arrays, at most 6, the first of which gives the type: as the kernel reads them, NULL where there is none,
 * and as they came (fwm_real_input). */
typedef struct {
    size_t n;
    PyArrayObject *const *read, *const *came;
    const char *const *names;
} FwmInputs;

/* Those that there are, by name; returns how many. */
size_t fwm_name_inputs(FwmInputs inputs, FwmNamedArray *named);

/* Arrays for the gradients of the first n inputs, at most 4: new, or those of out, None or a tuple that has None where
 * there is no input. */
int fwm_gradient_arrays(FwmInputs inputs, PyObject *out, size_t n, PyArrayObject **gradients);

/* A tuple of arrays, with None for NULL. */
PyObject *fwm_array_tuple(size_t n, PyArrayObject *const *arrays);

/* The numbers of an array, which may be NULL. */
void *fwm_data(PyArrayObject *array);

/* True or False, and a number that the precision of an array of this type holds: finite, and 0 only if it was given as
 * 0. */
int fwm_flag(PyObject *given, const char *name, bool *value);
int fwm_finite_number(PyObject *given, const char *name, int type, double *value);

/* The index of the word, of some that end with NULL; -1 with an exception that says what was expected. */
int fwm_word(PyObject *given, const char *name, const char *const *words, const char *expected);

/* `given` must be a tuple of two. */
int fwm_check_pair(PyObject *given, const char *name, const char *expected);

/* A function was called with so many arguments, and takes so many. */
int fwm_check_count(const char *function, Py_ssize_t got, Py_ssize_t expected);

/* Runs a pass of an operation on scratch of its own; 0, or -1 with a MemoryError. */
int fwm_run(const FwmOperation *operation, const FwmPass *pass, const void *call);

/* The kernels of an array's precision. */
const FwmKernels *fwm_kernels_for(PyArrayObject *array);

/* A row of the table of maps or rules by the name of its function or on the command line, or of the general memories by
 * the name of its function; -1 with an exception that names `argument`. */
Py_ssize_t fwm_find_map(PyObject *name, const char *argument);
Py_ssize_t fwm_find_readout(PyObject *name, const char *argument);
Py_ssize_t fwm_find_rule(PyObject *name, const char *argument);

#endif
