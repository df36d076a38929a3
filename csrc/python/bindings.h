/* What module.c adds to _core. Each function returns 0, or -1 with an exception. */
#ifndef FWM_PYTHON_BINDINGS_H
#define FWM_PYTHON_BINDINGS_H

#include "python/numpy_api.h"

/* Operations: name_forward and name_backward. */
int fwm_add_maps(PyObject *module);
int fwm_add_rules(PyObject *module);
int fwm_add_readouts(PyObject *module);
int fwm_add_attention(PyObject *module);
int fwm_add_convolution(PyObject *module);
int fwm_add_norm(PyObject *module);

/* The tables MAPS, RULES and READOUTS. */
int fwm_add_tables(PyObject *module);

/* Philox, MT19937, draw_omega; Stream; Model; array_at. */
int fwm_add_random(PyObject *module);
int fwm_add_stream(PyObject *module);
int fwm_add_model(PyObject *module);
int fwm_add_array_at(PyObject *module);

#endif
