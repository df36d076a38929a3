#ifndef FWM_KERNELS_GEMM_H
#define FWM_KERNELS_GEMM_H

#include "kernels/base/real.h"

#define gemm FWM_NAME(gemm)
#define gemm_decayed FWM_NAME(gemm_decayed)

/* A matrix operand that is read one number at a time: element (i, j) at data[i * row + j * column]. */
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

/* C = gamma C0 + A B, with A (m x k), B (k x n, rows of ldb), C and C0 (m x n, rows of ldc); n is a multiple of FWM_PAD.
 * C0 NULL stands for zeros, C0 == C adds in place. Every element is one chain of additions over k in ascending order,
 * whatever m and n, so that splitting the rows or columns over threads changes no bit. */
void gemm(size_t m, size_t n, size_t k, Strided a, const real *b, size_t ldb, real gamma, const real *c0, real *c, size_t ldc);

/* C = diag(whole + rest) C0 + A B: a factor for each row, in two parts (m each), computed as rest C0 + A B + whole C0. Where whole is 1
 * and the others are small, C0 is rounded once: hundreds of factors near 1, one after the other, lose little. whole NULL: no factors. */
void gemm_decayed(size_t m, size_t n, size_t k, Strided a, const real *b, size_t ldb, const real *whole, const real *rest,
                  const real *c0, real *c, size_t ldc);

#endif
