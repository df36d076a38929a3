/* Objects that change when they are used, so that one call at a time has them: how calls claim them (objects.c), and
 * their states as objects that can be pickled (states.c). */
#ifndef FWM_PYTHON_OBJECTS_H
#define FWM_PYTHON_OBJECTS_H

#include <stdatomic.h>

#include "api/model.h"
#include "python/arguments.h"
#include "retrieval/stream.h"

#include <structmember.h> /* of Python, behind Python.h */

/* What each of them begins with. */
typedef struct {
    PyObject_HEAD
    atomic_bool busy;     /* claimed */
    unsigned long thread; /* by which */
} FwmClaimed;

/* Whoever uses the inside of such an object claims it first, its own methods too: until it is released a second claim
 * raises RuntimeError. 0, or -1 with that exception. */
int fwm_claim(PyObject *object);
void fwm_release(PyObject *object);

/* As fwm_call, with self claimed once its arguments are read. */
PyObject *fwm_call_claimed(PyObject *self, const FwmSignature *signature, FwmFunction function, PyObject *const *args,
                           Py_ssize_t n, PyObject *names);

/* Defines the C function type_name of a type's method, and its signature of_type_name: `function`, with self claimed,
 * by the rows of its arguments, which need no names. Draws are float32, and so their numbers. Then its row. */
#define FWM_CLAIMED_METHOD(type_, name, function, ...)                                                                 \
    static const FwmArgument rows_of_##type_##_##name[] = {__VA_ARGS__};                                               \
    static FwmSignature of_##type_##_##name = {#name, rows_of_##type_##_##name, FWM_LENGTH(rows_of_##type_##_##name),  \
                                               FWM_LENGTH(rows_of_##type_##_##name), .type = NPY_FLOAT};               \
    static PyObject *type_##_##name(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names)              \
    {                                                                                                                  \
        return fwm_call_claimed(self, &of_##type_##_##name, function, args, n, names);                                 \
    }
#define FWM_CLAIMED_ROW(type_, name, doc) FWM_METHOD_ROW(#name, type_##_##name, doc)

/* Reads the rows of n signatures and adds a type to the module; 0, or -1 with an exception. No class can be derived
 * from the type: tp_dealloc tells objects apart. */
int fwm_add_type(PyObject *module, const char *name, size_t size, PyType_Slot *slots, FwmSignature *const *signatures,
                 size_t n);

/* tp_dealloc of an object whose inside is freed. */
void fwm_free_object(PyObject *self);

/* What is inside of a Stream: borrowed, to be claimed. NULL with a TypeError for other objects. */
FwmStream *fwm_stream_of(PyObject *object);

/* ---- states: what an object holds beyond its arguments; one that does not fit raises and changes nothing ---- */

/* (words (624,) uint32, position). */
PyObject *fwm_words_state(const FwmMT19937 *bits);
int fwm_set_words_state(FwmMT19937 *bits, PyObject *state);

/* Philox: (seed, blocks drawn); torch's generator: (words, position, spare or None). The kind stays. */
PyObject *fwm_source_state(const FwmBlockSource *source);
int fwm_set_source_state(FwmBlockSource *source, PyObject *state);

/* (numbers, moment1, moment2, steps, state of the generator), the arrays of NumPy's `type` as the model lays them out.
 */
PyObject *fwm_model_state(const FwmModel *model, int type);
int fwm_set_model_state(FwmModel *model, int type, PyObject *state);

#endif
