/* A chunk on a slab of the state, forward: chunk.h has the equations.
 *
 *     [E0; Q0] = X0 S0,   N_t = u_t - E0_t - sum_{s < t} A_ts N_s,   O_t = Q0_t + sum_{s <= t} P_ts N_s,
 *     S = diag(decay) S0 + K1^T N
 *
 * with A and P the blocks of scores for E and the queries. Two products of M x K x W and K x C x W, and triangular ones
 * of C x C x W. 6 K V operations a token in all, as in the recurrence, and (2 C + ..) V more.
 *
 * Derived in docs/mathematics/rules.md. */
#include "kernels/rules/family/slab.h"

#include <string.h>

#include "kernels/base/gemm.h"
#include "kernels/rules/tokens.h"

/* u (C x W), zeros after the last column and token */
static void load_written(const ValueHead *h, size_t t0, const Chunk *c, const Slab *slab, real *u)
{
    for (size_t t = 0; t < CHUNK; t++, u += SLAB) {
        const size_t there = t < c->n ? slab->n : 0;
        if (there)
            load_value(h, t0 + t, slab->j0, there, u);
        memset(u + there, 0, (SLAB - there) * sizeof(real));
    }
}

/* N (C x W), which holds u at first: N_t -= E0_t + sum_{s < t} A_ts N_s. A vector of columns at a time, whose N stay in
 * registers. */
static void solve(size_t columns, const real *A, const real *E0, real *N)
{
    for (size_t j = 0; j < columns; j += FWM_LANES) {
        vec n[CHUNK];
#pragma GCC unroll 16
        for (size_t t = 0; t < CHUNK; t++) {
            n[t] = vec_load(N + t * SLAB + j) - vec_load(E0 + t * SLAB + j);
#pragma GCC unroll 16
            for (size_t s = 0; s < t; s++)
                n[t] -= A[t * CHUNK + s] * n[s];
            vec_store(N + t * SLAB + j, n[t]);
        }
    }
}

/* O_t += sum_{s <= t} P_ts N_s */
static void read_chunk(size_t columns, const real *P, const real *N, real *O)
{
    for (size_t j = 0; j < columns; j += FWM_LANES) {
        vec n[CHUNK];
#pragma GCC unroll 16
        for (size_t t = 0; t < CHUNK; t++) {
            n[t] = vec_load(N + t * SLAB + j);
            vec o = vec_load(O + t * SLAB + j);
#pragma GCC unroll 16
            for (size_t s = 0; s <= t; s++)
                o += P[t * CHUNK + s] * n[s];
            vec_store(O + t * SLAB + j, o);
        }
    }
}

size_t slab_forward_scratch(const ChunkShape *s)
{
    return s->readers * CHUNK * SLAB * sizeof(real);
}

void update_slab(const Chunk *c, const Slab *slab, const real *S0, const real *N, real *S)
{
    const ChunkShape *s = &c->shape;
    gemm_decayed(s->K, slab->padded, CHUNK, rows_of(c->k1_t, CHUNK), N, SLAB, c->in_two, S0, S, SLAB);
}

void slab_forward(const ValueHead *h, size_t t0, const Chunk *c, const Slab *slab, const real *S0, real *S, real *N,
                  void *scratch)
{
    const ChunkShape *s = &c->shape;
    real *read = scratch;
    if (s->readers)
        gemm(s->readers * CHUNK, slab->padded, s->K, rows_of(c->x0, s->ld), S0, SLAB, 0, NULL, read, SLAB);
    load_written(h, t0, c, slab, N);
    if (s->erases)
        solve(slab->padded, c->scores, read, N);
    for (size_t r = s->erases; r < s->readers; r++) {
        real *o = read + r * CHUNK * SLAB;
        read_chunk(slab->padded, c->scores + r * CHUNK * CHUNK, N, o);
        for (size_t t = 0; s->normalize && t < c->n; t++)
            for (size_t j = 0; j < SLAB; j += FWM_LANES)
                vec_store(o + t * SLAB + j, c->reciprocal[r * CHUNK + t] * vec_load(o + t * SLAB + j));
        for (size_t t = 0; t < c->n; t++)
            copy(slab->n, o + t * SLAB, token(h->o, t0 + t) + (r - s->erases) * h->V + slab->j0);
    }
    update_slab(c, slab, S0, N, S);
}
