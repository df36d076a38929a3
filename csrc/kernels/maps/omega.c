/* Omega of FAVOR+, in blocks of d columns. With A a d x d matrix of standard normals and A = Q R by Householder
 * reflections, as in LAPACK, column c of the block is Q[:, c] |row c of A|: orthogonal directions with the lengths of
 * normal vectors. Q is the product of the reflections, not the Q for which R has a positive diagonal.
 *
 *     column j: alpha = -sign(a_jj) |a_{j..d, j}|,  v = a_{j..d, j} - alpha e_1,  H_j = I - 2 v v^T / v^T v
 *     R = H_{d-1} .. H_0 A,   Q = H_0 .. H_{d-1};   H_j = I where all of column j below the diagonal is 0
 *
 * A is stored transposed, so that the column being reflected is a contiguous row.
 *
 * Derived in docs/mathematics/feature_maps.md. */
#include "kernels/maps/omega.h"

#include <math.h>
#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/base/gemm.h"
#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"

/* x -= 2 v (v . x) / v . v, for n columns x, stored as rows of ld; the first `from` entries of v are 0. */
static void reflect(size_t n, size_t ld, size_t from, const real *v, real two_over_vv, real *x)
{
    from = from / FWM_PAD * FWM_PAD;
    for (size_t i = 0; i < n; i++, x += ld)
        add_scaled(ld - from, -two_over_vv * dot(ld - from, v + from, x + from), v + from, x + from);
}

/* Writes v (ld) for column j; returns 2 / v . v, or 0 if there is nothing to reflect. */
static real householder(size_t d, size_t ld, size_t j, real *column, real *v)
{
    real below = 0;
    for (size_t i = j + 1; i < d; i++)
        below += column[i] * column[i];
    if (below == 0)
        return 0;
    const real length = FWM_SQRT(below + column[j] * column[j]);
    const real alpha = column[j] >= 0 ? -length : length;
    memset(v, 0, ld * sizeof(real));
    memcpy(v + j, column + j, (d - j) * sizeof(real));
    v[j] -= alpha;
    return 2 / (below + v[j] * v[j]);
}

typedef struct {
    real *A;       /* d x padded(d), transposed; then Q, transposed */
    real *vs;      /* d x padded(d): v of each reflection */
    real *lengths; /* d: of the rows of A */
    real *factors; /* d: 2 / v . v */
} OrthogonalScratch;

static OrthogonalScratch take_scratch(size_t d, Arena *arena)
{
    const size_t ld = fwm_padded(d);
    OrthogonalScratch w;
    w.A = take(arena, d * ld);
    w.vs = take(arena, d * ld);
    w.lengths = take(arena, d);
    w.factors = take(arena, d);
    return w;
}

size_t orthogonal_block_scratch(size_t d)
{
    Arena arena = {0};
    take_scratch(d, &arena);
    return arena.next;
}

void orthogonal_block(size_t d, const float *normals, size_t columns, real *omega, size_t ld_omega, void *scratch)
{
    const size_t ld = fwm_padded(d);
    Arena arena = arena_at(scratch);
    const OrthogonalScratch w = take_scratch(d, &arena);
    real *A = w.A, *vs = w.vs, *lengths = w.lengths, *factors = w.factors;
    memset(A, 0, d * ld * sizeof(real));
    for (size_t i = 0; i < d; i++) {
        double square = 0;
        for (size_t j = 0; j < d; j++) {
            A[j * ld + i] = normals[i * d + j];
            square += (double)normals[i * d + j] * normals[i * d + j];
        }
        lengths[i] = (real)sqrt(square);
    }
    for (size_t j = 0; j < d; j++) {
        factors[j] = householder(d, ld, j, A + j * ld, vs + j * ld);
        if (factors[j] != 0 && j + 1 < d)
            reflect(d - j - 1, ld, j, vs + j * ld, factors[j], A + (j + 1) * ld);
    }
    real *Q = A; /* row c is column c of Q: H_0 .. H_{d-1} e_c, and H_j e_c = e_c for j > c */
    memset(Q, 0, columns * ld * sizeof(real));
    for (size_t c = 0; c < columns; c++)
        Q[c * ld + c] = 1;
    for (size_t j = columns; j-- > 0;)
        if (factors[j] != 0)
            reflect(columns - j, ld, j, vs + j * ld, factors[j], Q + j * ld);
    for (size_t i = 0; i < d; i++)
        for (size_t c = 0; c < columns; c++)
            omega[i * ld_omega + c] = Q[c * ld + i] * lengths[c];
}

size_t build_omega_scratch(size_t d)
{
    return orthogonal_block_scratch(d);
}

void build_omega(size_t d, size_t m, const float *normals, void *omega, void *scratch)
{
    for (size_t first = 0; first < m; first += d)
        orthogonal_block(d, normals + first * d, fwm_min(d, m - first), (real *)omega + first, m, scratch);
}

void omega_forward(const MapShape *shape, const real *omega, size_t n, real *rows)
{
    const size_t ld_m = fwm_padded(shape->extension);
    gemm(n, ld_m, shape->d, rows_of(rows, shape->ld), omega, ld_m, 0, NULL, rows + shape->u, shape->ld);
}

/* A row of omega_t is padded like x, so only zeros are added to the padding. */
void omega_backward(const MapShape *shape, const real *omega_t, size_t n, real *rows)
{
    const size_t ld_d = fwm_padded(shape->d);
    gemm(n, ld_d, shape->extension, rows_of(rows + shape->u, shape->ld), omega_t, ld_d, 1, rows, rows, shape->ld);
}
