/* The source of FAVOR+'s d x d blocks of normals: CUDA's generator (the published logs) or torch's CPU generator.
 * FROZEN, like the two streams. */
#ifndef FWM_RANDOM_OMEGA_DRAWS_H
#define FWM_RANDOM_OMEGA_DRAWS_H

#include <stddef.h>

#include "random/philox.h"
#include "random/torch_cpu.h"

typedef enum { FWM_PHILOX, FWM_TORCH_CPU } FwmBlockSourceKind;

typedef struct {
    FwmBlockSourceKind kind;
    union {
        FwmPhilox philox;
        FwmTorchCpu torch_cpu;
    };
} FwmBlockSource;

/* out (n): the next block, row-major; n = d * d. */
void fwm_next_normal_block(FwmBlockSource *source, size_t n, float *out);

/* Leaves the source as if `blocks` blocks of n numbers had been drawn. */
void fwm_skip_normal_blocks(FwmBlockSource *source, size_t n, size_t blocks);

#endif
