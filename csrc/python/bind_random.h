/* From a Philox or an MT19937 to the generator inside. */
#ifndef FWM_PYTHON_BIND_RANDOM_H
#define FWM_PYTHON_BIND_RANDOM_H

#include "python/numpy_api.h"
#include "random/omega_draws.h"

/* Borrowed; NULL with a TypeError that names "generator" for other objects. To be claimed (claim.h). */
FwmBlockSource *fwm_block_source_of(PyObject *object);

#endif
