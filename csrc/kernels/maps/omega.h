/* The random directions of FAVOR+. */
#ifndef FWM_KERNELS_OMEGA_H
#define FWM_KERNELS_OMEGA_H

#include "kernels/base/real.h"

#define orthogonal_block FWM_NAME(orthogonal_block)

static inline size_t omega_blocks(size_t d, size_t m)
{
    return (m + d - 1) / d;
}

/* Numbers of scratch for orthogonal_block. */
static inline size_t orthogonal_block_scratch(size_t d)
{
    return d * fwm_padded(d) * 2 + 2 * fwm_padded(d);
}

/* normals (d x d) become `columns` columns of omega (d x columns, rows of ld). */
void orthogonal_block(size_t d, const float *normals, size_t columns, real *omega, size_t ld, real *scratch);

#endif
