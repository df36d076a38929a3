/* How objects that change when they are used begin: one call at a time has them. Include after numpy_api.h. */
#ifndef FWM_PYTHON_CLAIM_H
#define FWM_PYTHON_CLAIM_H

#include <stdatomic.h>
#include <stdbool.h>

#include "python/numpy_api.h"

#define FWM_TYPE_FLAGS                                                                                                 \
    (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE) /* none can be derived from: tp_dealloc tells them apart */

typedef struct {
    PyObject_HEAD
    atomic_bool busy;     /* claimed */
    unsigned long thread; /* by which */
} FwmClaimed;

/* Whoever uses the inside of such an object claims it first, its own methods too: until it is released a second claim
 * raises RuntimeError. 0, or -1 with that exception. */
int fwm_claim(PyObject *object);
void fwm_release(PyObject *object);

/* Adds a type to the module; 0, or -1 with an exception. */
int fwm_add_type(PyObject *module, PyType_Spec *spec);

#endif
