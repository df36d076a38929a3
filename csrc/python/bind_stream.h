/* From a Stream to the data inside. */
#ifndef FWM_PYTHON_BIND_STREAM_H
#define FWM_PYTHON_BIND_STREAM_H

#include "python/numpy_api.h"
#include "retrieval/stream.h"

/* Borrowed; NULL with a TypeError that names "stream" for other objects. To be claimed (claim.h). */
FwmStream *fwm_stream_of(PyObject *object);

#endif
