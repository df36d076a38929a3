/* A chunk on a slab of the state, backward. Forward (slab.c):
 *
 *     [U - N; O] = X0 S0 + scores N,      S = diag(decay) S0 + K1^T N
 *
 * Given are dO and dS, and N and S0, which a forward pass has recomputed. With A and P the blocks of scores for E and
 * the queries,
 *
 *     (I + A)^T dN = P^T dO + K1 dS          by substitution from the last token; dU = dN
 *     Y = [-dN; dO]                          the gradient of the stack on the left
 *     dX0 = Y S0^T,   dscores = Y N^T,   dK1 = N dS^T,   ddecay_i = <S0_i, dS_i>
 *     dS0 = diag(decay) dS + X0^T Y
 *
 * dX0 and dK1 are computed transposed, because then the state is read along its rows. 12 K V operations a token with an
 * erase key.
 *
 * Derived in docs/mathematics/rules.md. */
#include "kernels/rules/family/slab.h"

#include <string.h>

#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/rules/tokens.h"

typedef struct {
    real *dN;      /* C x W */
    real *Y, *Y_t; /* M x W, W x M */
    real *N_t;     /* W x C */
} SlabBackwardScratch;

static SlabBackwardScratch divide_scratch(const FamilyShape *s, real *scratch)
{
    const size_t stack = s->readers * CHUNK * SLAB;
    return (SlabBackwardScratch){scratch, scratch + CHUNK * SLAB, scratch + CHUNK * SLAB + stack,
                                 scratch + CHUNK * SLAB + 2 * stack};
}

size_t slab_backward_scratch(const FamilyShape *s)
{
    return 2 * (s->readers + 1) * CHUNK * SLAB * sizeof(real);
}

/* dN_s += sum_{t >= s} P_ts do_t */
static void read_backward(size_t columns, const real *P, const real *dO, real *dN)
{
    for (size_t j = 0; j < columns; j += FWM_LANES) {
        vec dout[CHUNK];
#pragma GCC unroll 16
        for (size_t t = 0; t < CHUNK; t++)
            dout[t] = vec_load(dO + t * SLAB + j);
#pragma GCC unroll 16
        for (size_t s = 0; s < CHUNK; s++) {
            vec dn = vec_load(dN + s * SLAB + j);
#pragma GCC unroll 16
            for (size_t t = s; t < CHUNK; t++)
                dn += P[t * CHUNK + s] * dout[t];
            vec_store(dN + s * SLAB + j, dn);
        }
    }
}

/* dN_s -= sum_{t > s} A_ts dN_t; minus = -dN */
static void solve_backward(size_t columns, const real *A, real *dN, real *minus)
{
    for (size_t j = 0; j < columns; j += FWM_LANES) {
        vec dn[CHUNK];
#pragma GCC unroll 16
        for (size_t i = 0; i < CHUNK; i++) {
            const size_t s = CHUNK - 1 - i;
            dn[s] = vec_load(dN + s * SLAB + j);
#pragma GCC unroll 16
            for (size_t t = s + 1; t < CHUNK; t++)
                dn[s] -= A[t * CHUNK + s] * dn[t];
            vec_store(dN + s * SLAB + j, dn[s]);
            vec_store(minus + s * SLAB + j, -dn[s]);
        }
    }
}

/* The queries' rows of Y: do, divided by the denominator with normalised reading. */
static void load_dout(const ValueHead *h, size_t t0, const Chunk *c, const Slab *slab, real *Y)
{
    for (size_t m = c->shape.erases * CHUNK; m < c->shape.readers * CHUNK; m++) {
        const size_t t = m % CHUNK, r = m / CHUNK - c->shape.erases, there = t < c->n ? slab->n : 0;
        real *row = Y + m * SLAB;
        if (there)
            copy(there, token(h->dout, t0 + t) + r * h->V + slab->j0, row);
        if (there < SLAB)
            memset(row + there, 0, (SLAB - there) * sizeof(real));
        for (size_t j = 0; c->shape.normalize && j < there; j++)
            row[j] *= c->reciprocal[m];
    }
}

/* ddecay_i = <S0_i, dS_i>, and 0 for the rows beyond K; added to what is there unless it is the first. */
static void decay_backward(size_t K, size_t columns, const real *S0, const real *dS, bool first, real *ddecay)
{
    for (size_t i = 0; i < K; i += FWM_LANES) {
        vec sums[FWM_LANES];
        for (size_t row = 0; row < FWM_LANES; row++) {
            vec sum = {0};
            for (size_t j = (i + row) * SLAB; i + row < K && j < (i + row) * SLAB + columns; j += FWM_LANES)
                sum += vec_load(S0 + j) * vec_load(dS + j);
            sums[row] = sum;
        }
        const vec all = vec_sums(sums);
        vec_store(ddecay + i, first ? all : all + vec_load(ddecay + i));
    }
}

/* C = A B, or, unless it is the first, C += A B: the bits are those of add_chunk_gradients. */
static void product(bool first, size_t m, size_t n, size_t k, Strided a, const real *b, real *c)
{
    if (first)
        gemm(m, n, k, a, b, n, 0, NULL, c, n);
    else
        gemm_added(m, n, k, a, b, n, c, n);
}

void slab_backward(const ValueHead *h, size_t t0, const Chunk *c, const Slab *slab, const real *S0, const real *N,
                   real *dS, bool first, ChunkGradients *sums, void *scratch)
{
    const FamilyShape *s = &c->shape;
    const size_t M = s->readers * CHUNK, K = s->K, columns = slab->padded;
    const SlabBackwardScratch w = divide_scratch(s, scratch);
    load_dout(h, t0, c, slab, w.Y);
    gemm(CHUNK, columns, K, rows_of(c->k1, s->ld), dS, SLAB, 0, NULL, w.dN, SLAB);
    for (size_t r = s->erases; r < s->readers; r++)
        read_backward(columns, c->scores + r * CHUNK * CHUNK, w.Y + r * CHUNK * SLAB, w.dN);
    if (s->erases)
        solve_backward(columns, c->scores, w.dN, w.Y);
    real dbeta[CHUNK] = {0};
    store_values(h, t0, c->n, slab->j0, slab->n, SLAB, w.dN, dbeta);
    for (size_t t = 0; t < CHUNK; t++)
        sums->dbeta[t] = first ? dbeta[t] : sums->dbeta[t] + dbeta[t];
    transpose(M, columns, w.Y, SLAB, w.Y_t, M);
    transpose(CHUNK, columns, N, SLAB, w.N_t, CHUNK);
    product(first, K, M, columns, rows_of(S0, SLAB), w.Y_t, sums->dx0);
    product(first, K, CHUNK, columns, rows_of(dS, SLAB), w.N_t, sums->dk1);
    product(first, M, CHUNK, columns, rows_of(w.Y, SLAB), w.N_t, sums->dscores);
    if (s->gate != FWM_NO_GATE)
        decay_backward(K, columns, S0, dS, first, sums->ddecay);
    gemm_decayed(K, columns, M, rows_of(c->x0_t, M), w.Y, SLAB, c->in_two, dS, dS, SLAB);
}
