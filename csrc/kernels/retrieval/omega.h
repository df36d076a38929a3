/* Omega of a forward pass: drawn block by block, or part of the batch. */
#ifndef FWM_KERNELS_RETRIEVAL_OMEGA_H
#define FWM_KERNELS_RETRIEVAL_OMEGA_H

#include "kernels/retrieval/step.h"

#define draw_omega FWM_NAME(draw_omega)
#define omega_scratch FWM_NAME(omega_scratch)
#define prepare_omega FWM_NAME(prepare_omega)
#define source_of_pass FWM_NAME(source_of_pass)

/* Draws Omega (d x padded(m)); scratch in bytes. */
void draw_omega(FwmBlockSource *source, size_t d, size_t m, real *omega, void *scratch);
size_t omega_scratch(size_t d);

/* Where the model's source is when `passes` more passes have drawn; it stays where each pass has the same Omega. */
FwmBlockSource source_of_pass(const FwmModel *model, size_t passes);

/* Draws or copies the step's Omega, and transposes it. */
void prepare_omega(Step *s);

#endif
