/* What a generator, a stream or a model holds beyond its arguments, as objects that can be pickled, and back. */
#ifndef FWM_PYTHON_STATES_H
#define FWM_PYTHON_STATES_H

#include "api/model.h"
#include "python/numpy_api.h"
#include "random/omega_draws.h"

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
