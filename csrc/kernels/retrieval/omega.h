/* Omega of a forward pass: drawn block by block, or given with the batch. */
#ifndef FWM_KERNELS_RETRIEVAL_OMEGA_H
#define FWM_KERNELS_RETRIEVAL_OMEGA_H

#include "kernels/retrieval/step.h"

#define draw_omega FWM_NAME(draw_omega)
#define omega_scratch FWM_NAME(omega_scratch)
#define place_omega FWM_NAME(place_omega)

/* Draws Omega (d x padded(m)); scratch: omega_scratch numbers. */
void draw_omega(FwmBlockSource *source, size_t d, size_t m, real *omega, real *scratch);
size_t omega_scratch(size_t d);

/* The step's Omega, and its transpose. */
void place_omega(Step *s);

#endif
