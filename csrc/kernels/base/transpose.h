/* The transpose of a matrix. */
#ifndef FWM_KERNELS_BASE_TRANSPOSE_H
#define FWM_KERNELS_BASE_TRANSPOSE_H

#include "kernels/base/real.h"

#define transpose FWM_NAME(transpose)

/* out (n x m, rows of ld_out) = in^T, in (m x n, rows of ld_in). */
void transpose(size_t m, size_t n, const real *in, size_t ld_in, real *out, size_t ld_out);

#endif
