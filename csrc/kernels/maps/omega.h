/* The random directions of FAVOR+. */
#ifndef FWM_KERNELS_MAPS_OMEGA_H
#define FWM_KERNELS_MAPS_OMEGA_H

#include "kernels/maps/map.h"

#define orthogonal_block FWM_NAME(orthogonal_block)
#define build_omega_scratch FWM_NAME(build_omega_scratch)
#define build_omega FWM_NAME(build_omega)
#define expand_rows FWM_NAME(expand_rows)
#define contract_rows FWM_NAME(contract_rows)

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

/* normals (d x d blocks, one behind the other, as drawn) become omega (d x m, packed); scratch in bytes. */
size_t build_omega_scratch(size_t d);
void build_omega(size_t d, size_t m, const float *normals, void *omega, void *scratch);

/* n pre-activation rows (map.h): u = x Omega, and dx += Omega du. omega (d x padded(m)), omega_t (m x padded(d)). */
void expand_rows(const MapShape *shape, const real *omega, size_t n, real *rows);
void contract_rows(const MapShape *shape, const real *omega_t, size_t n, real *rows);

#endif
