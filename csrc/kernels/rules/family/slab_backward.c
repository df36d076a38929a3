/* A chunk on a slab of the state, backward.
 *
 * Forward (slab.c), with Y the stack of what the readers' results stand for:
 *
 *     [U - N; O] = X0 S0 + scores N,      S = diag(decay) S0 + K1^T N
 *
 * Given dO and dS; N and S0 are handed in, made again by a forward pass. With A and P the blocks of scores for E and
 * the queries,
 *
 *     (I + A)^T dN = P^T dO + K1 dS          by substitution from the last token; dU = dN
 *     Y = [-dN; dO]                          the gradient of the stack on the left
 *     dX0 = Y S0^T,   dscores = Y N^T,   dK1 = N dS^T,   ddecay_i = <S0_i, dS_i>
 *     dS0 = diag(decay) dS + X0^T Y
 *
 * dX0 and dK1 are made transposed, for then the state is read along its rows. 12 K V operations a token with an erase
 * key. */
#include <string.h>

#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/rules/family/slab.h"
#include "kernels/rules/tokens.h"

typedef struct {
    real *dN;      /* C x W */
    real *Y, *Y_t; /* M x W, W x M */
    real *N_t;     /* W x C */
} Scratch;

static Scratch divide(const ChunkShape *s, real *scratch)
{
    const size_t stack = s->readers * C * W;
    return (Scratch){scratch, scratch + C * W, scratch + C * W + stack, scratch + C * W + 2 * stack};
}

size_t slab_backward_scratch(const ChunkShape *s)
{
    return 2 * (s->readers + 1) * C * W * sizeof(real);
}

/* dN_s += sum_{t >= s} P_ts do_t */
static void read_backward(size_t columns, const real *P, const real *dO, real *dN)
{
    for (size_t j = 0; j < columns; j += FWM_LANES) {
        vec dout[C];
#pragma GCC unroll 16
        for (size_t t = 0; t < C; t++)
            dout[t] = vec_load(dO + t * W + j);
#pragma GCC unroll 16
        for (size_t s = 0; s < C; s++) {
            vec dn = vec_load(dN + s * W + j);
#pragma GCC unroll 16
            for (size_t t = s; t < C; t++)
                dn += P[t * C + s] * dout[t];
            vec_store(dN + s * W + j, dn);
        }
    }
}

/* dN_s -= sum_{t > s} A_ts dN_t; minus = -dN */
static void solve_backward(size_t columns, const real *A, real *dN, real *minus)
{
    for (size_t j = 0; j < columns; j += FWM_LANES) {
        vec dn[C];
#pragma GCC unroll 16
        for (size_t i = 0; i < C; i++) {
            const size_t s = C - 1 - i;
            dn[s] = vec_load(dN + s * W + j);
#pragma GCC unroll 16
            for (size_t t = s + 1; t < C; t++)
                dn[s] -= A[t * C + s] * dn[t];
            vec_store(dN + s * W + j, dn[s]);
            vec_store(minus + s * W + j, -dn[s]);
        }
    }
}

/* The rows of the queries: do, over the denominator with normalised reading. */
static void load_dout(const Head *h, size_t t0, const Chunk *c, const Slab *slab, real *Y)
{
    for (size_t m = c->shape.erases * C; m < c->shape.readers * C; m++) {
        const size_t t = m % C, r = m / C - c->shape.erases, there = t < c->n ? slab->n : 0;
        real *row = Y + m * W;
        if (there)
            copy(there, token(h->dout, t0 + t) + r * h->V + slab->j0, row);
        memset(row + there, 0, (W - there) * sizeof(real));
        for (size_t j = 0; c->shape.normalize && j < there; j++)
            row[j] *= c->reciprocal[m];
    }
}

void write_chunk_backward(const Head *h, size_t t0, const Chunk *c, const Slab *slab, const real *S0, const real *N,
                          real *dS, ChunkGradients *part, void *scratch)
{
    const ChunkShape *s = &c->shape;
    const size_t M = s->readers * C, K = s->K, columns = slab->padded;
    const Scratch w = divide(s, scratch);
    load_dout(h, t0, c, slab, w.Y);
    gemm(C, columns, K, rows_of(c->k1, s->ld), dS, W, 0, NULL, w.dN, W);
    for (size_t r = s->erases; r < s->readers; r++)
        read_backward(columns, c->scores + r * C * C, w.Y + r * C * W, w.dN);
    if (s->erases)
        solve_backward(columns, c->scores, w.dN, w.Y);
    for (size_t t = 0; t < C; t++)
        part->dbeta[t] = t < c->n ? store_value(h, t0 + t, slab->j0, slab->n, w.dN + t * W) : 0;
    transpose(M, columns, w.Y, W, w.Y_t, M);
    transpose(C, columns, N, W, w.N_t, C);
    gemm(K, M, columns, rows_of(S0, W), w.Y_t, M, 0, NULL, part->dx0, M);
    gemm(K, C, columns, rows_of(dS, W), w.N_t, C, 0, NULL, part->dk1, C);
    gemm(M, C, columns, rows_of(w.Y, W), w.N_t, C, 0, NULL, part->dscores, C);
    for (size_t i = 0; s->gate != FWM_NO_GATE && i < K; i++)
        part->ddecay[i] = dot(columns, S0 + i * W, dS + i * W);
    gemm_decayed(K, columns, M, rows_of(c->x0_t, M), w.Y, W, c->in_two, dS, dS, W);
}
