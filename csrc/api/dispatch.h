#ifndef FWM_API_DISPATCH_H
#define FWM_API_DISPATCH_H

#include "api/kernels.h"

/* Chooses the variant: the best this processor runs, or the one named. Returns NULL and writes why into message (of
 * message_size) if there is no such variant or this processor lacks it. */
const char *fwm_choose_variant(const char *name, char *message, size_t message_size);

/* The copies of the chosen variant. */
const FwmKernels *fwm_kernels_f32(void);
const FwmKernels *fwm_kernels_f64(void);

/* The i-th variant that was built and that this processor runs, NULL behind the last. */
const char *fwm_usable_variant(size_t i);

#endif
