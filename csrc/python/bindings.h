/* What module.c adds to _core. */
#ifndef FWM_PYTHON_BINDINGS_H
#define FWM_PYTHON_BINDINGS_H

#include "python/operation.h"

/* Operations: name_forward and name_backward. */
extern FwmBinding fwm_map, fwm_rule, fwm_noncausal, fwm_readout, fwm_attention, fwm_convolution, fwm_convolution_update,
    fwm_norm;
extern FwmModuleFunction fwm_map_features, fwm_tensor_array, fwm_tensor_arrays, fwm_plain_tensors;

/* The activations of a convolution: two words for one function. */
extern const char *const fwm_silu_words[];

/* The heads of queries, keys and values, from which those of the output follow: binds their letter. 0, or -1 with an
 * exception. */
int fwm_check_heads(FwmArguments *a, size_t HQ, size_t H, size_t HV, size_t K, size_t V, int outputs);

/* The tables MAPS, RULES and READOUTS; Philox, MT19937 and draw_omega; Stream; Model. 0, or -1 with an exception. */
int fwm_add_tables(PyObject *module);
int fwm_add_random(PyObject *module);
int fwm_add_stream(PyObject *module);
int fwm_add_model(PyObject *module);

#endif
