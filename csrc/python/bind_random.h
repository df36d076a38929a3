/* The extension types Philox, MT19937 (bind_random.c) and Stream (bind_stream.c), and the way from an
 * object of theirs to the C struct inside. Include after Python.h. */
#ifndef FWM_PYTHON_BIND_RANDOM_H
#define FWM_PYTHON_BIND_RANDOM_H

#include <stdatomic.h>

#include "random/omega_draws.h"
#include "retrieval/stream.h"

/* ---- for the rest of the extension ---- */

/* Add the three types. 0, or -1 with an exception. */
int fwm_add_random_types(PyObject *module);

/* The stream inside a Stream, borrowed; NULL with a TypeError that names "stream" for other objects. */
FwmStream *fwm_stream_of(PyObject *object);

/* The source inside a Philox or an MT19937, borrowed; NULL with a TypeError that names "generator" for
 * others. */
FwmBlockSource *fwm_block_source_of(PyObject *object);

/* Whoever uses the inside of a Stream, Philox or MT19937 claims the object first, its own methods too:
 * until it is released a second claim raises RuntimeError. 0, or -1 with that exception. */
int fwm_random_claim(PyObject *object);
void fwm_random_release(PyObject *object);

/* ---- between the two files ---- */

#define FWM_TYPE_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE)
#define HIGHEST_WORD 4294967295LL
#define HIGHEST_LENGTH (PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(int64_t))

/* How every object of these types begins. None can be subclassed, so tp_dealloc tells them apart. */
typedef struct {
    PyObject_HEAD
    atomic_bool busy;     /* claimed */
    unsigned long thread; /* by which */
} FwmRandomObject;

int fwm_add_type(PyObject *module, PyType_Spec *spec);
int fwm_add_stream_type(PyObject *module);

/* 0, or -1 with a ValueError or TypeError that names the argument, unless `given` is an integer in the
 * range. */
int fwm_integer_argument(PyObject *given, const char *name, long long lowest, long long highest, long long *value);

#endif
