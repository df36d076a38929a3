/* Working memory of a call. Include after Python.h. */
#ifndef FWM_PYTHON_SCRATCH_H
#define FWM_PYTHON_SCRATCH_H

#include <stddef.h>

/* bytes for each of `count` users, aligned, of any content; NULL with a MemoryError. *stride: from one user's to the
 * next's. */
void *fwm_scratch(size_t count, size_t bytes, size_t *stride);

/* Gives it back; NULL is nothing. */
void fwm_release_scratch(void *scratch);

#endif
