/* Matrix products. */
#ifndef FWM_KERNELS_BASE_GEMM_H
#define FWM_KERNELS_BASE_GEMM_H

#include "kernels/base/vector.h"

#define gemm FWM_NAME(gemm)
#define gemm_decayed FWM_NAME(gemm_decayed)
#define gemm_added FWM_NAME(gemm_added)

/* A matrix operand that is read number by number: element (i, j) is data[i * row + j * column]. */
typedef struct {
    const real *data;
    size_t row, column;
} Strided;

static inline Strided rows_of(const real *data, size_t ld)
{
    return (Strided){data, ld, 1};
}

static inline Strided transposed(const real *data, size_t ld)
{
    return (Strided){data, 1, ld};
}

/* C = gamma C0 + A B, with A (m x k), B (k x n, rows of ldb), C and C0 (m x n, rows of ldc); n is a multiple of
 * FWM_PAD. C0 = NULL stands for zeros; with C0 == C the product is accumulated in place. Every element is one chain of
 * additions over k in ascending order, whatever m and n are, so that splitting rows or columns over threads changes no
 * bit. */
void gemm(size_t m, size_t n, size_t k, Strided a, const real *b, size_t ldb, real gamma, const real *c0, real *c,
          size_t ldc);

/* The decay factors of a matrix's rows, each in the two parts that exp_in_two returns: the factor is `rest`, plus 1
 * where the mask is set. */
typedef struct {
    const real *rest; /* m; NULL for no decay */
    const lane_number *one_more;
} Decay;

/* C = diag(decay) C0 + A B. Where a factor is near 1 it is computed as (A B + rest C0) + C0, so that C0 is rounded only
 * by the last addition: hundreds of such decays in a row lose little. */
void gemm_decayed(size_t m, size_t n, size_t k, Strided a, const real *b, size_t ldb, Decay decay, const real *c0,
                  real *c, size_t ldc);

/* C = C + (A B), with A B computed as by itself, and added last: the bits of a product that is stored and added. For k
 * of one block, 96 or less. */
void gemm_added(size_t m, size_t n, size_t k, Strided a, const real *b, size_t ldb, real *c, size_t ldc);

#endif
