/* Scratch: the working space of a call, on huge pages if it is large and the system has them. */
#ifndef FWM_RUNTIME_SCRATCH_H
#define FWM_RUNTIME_SCRATCH_H

#include <stddef.h>

/* `bytes` bytes, aligned to a cache line and not initialised; NULL if memory is short. */
void *fwm_scratch(size_t bytes);

/* Releases what fwm_scratch returned; does nothing for NULL. */
void fwm_release_scratch(void *scratch);

#endif
