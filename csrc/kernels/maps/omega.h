/* Omega, the random directions of FAVOR+: made of normals, and multiplied with tokens. */
#ifndef FWM_KERNELS_MAPS_OMEGA_H
#define FWM_KERNELS_MAPS_OMEGA_H

#include "kernels/maps/map.h"

#define orthogonal_block_scratch FWM_NAME(orthogonal_block_scratch)
#define orthogonal_block FWM_NAME(orthogonal_block)
#define build_omega_scratch FWM_NAME(build_omega_scratch)
#define build_omega FWM_NAME(build_omega)
#define omega_forward FWM_NAME(omega_forward)
#define omega_backward FWM_NAME(omega_backward)

/* Blocks of d columns that make up the m columns of Omega. */
static inline size_t omega_blocks(size_t d, size_t m)
{
    return (m + d - 1) / d;
}

/* normals (d x d) become `columns` columns of omega (d x columns, rows of ld); scratch in bytes. */
size_t orthogonal_block_scratch(size_t d);
void orthogonal_block(size_t d, const float *normals, size_t columns, real *omega, size_t ld, void *scratch);

/* normals (d x d blocks, one behind the other, as drawn) become omega (d x m, packed); scratch in bytes. */
size_t build_omega_scratch(size_t d);
void build_omega(size_t d, size_t m, const float *normals, void *omega, void *scratch);

/* On n pre-activation rows (map.h): u = x Omega, with omega (d x padded(m)); and dx += Omega du, with its transpose
 * omega_t (m x padded(d)). */
void omega_forward(const MapShape *shape, const real *omega, size_t n, real *rows);
void omega_backward(const MapShape *shape, const real *omega_t, size_t n, real *rows);

#endif
