/* Working space of a call, on huge pages where it is large and the system has them. */
#ifndef FWM_RUNTIME_SCRATCH_H
#define FWM_RUNTIME_SCRATCH_H

#include <stddef.h>

/* So many bytes, aligned, of any content; NULL when memory is short. */
void *fwm_scratch(size_t bytes);

/* Gives it back; NULL is nothing. */
void fwm_release_scratch(void *scratch);

#endif
