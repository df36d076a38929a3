/* What module.c adds to _core. */
#ifndef FWM_PYTHON_BINDINGS_H
#define FWM_PYTHON_BINDINGS_H

#include "python/operation.h"

/* Operations: name_forward and name_backward. */
extern FwmBinding fwm_map, fwm_rule, fwm_readout, fwm_attention, fwm_convolution, fwm_norm;
extern FwmModuleFunction fwm_map_features, fwm_array_at;

/* The tables MAPS, RULES and READOUTS; Philox, MT19937 and draw_omega; Stream; Model. 0, or -1 with an exception. */
int fwm_add_tables(PyObject *module);
int fwm_add_random(PyObject *module);
int fwm_add_stream(PyObject *module);
int fwm_add_model(PyObject *module);

#endif
