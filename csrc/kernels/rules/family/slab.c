/* The state on a slab, forward. Rules that erase go quad by quad (span.h has the equations). The state is read once for
 * erase keys and queries, 8 rows by 2 vectors of columns in registers, and once more, and written, when the four values
 * are known: 6 K V operations a token in all, as in the recurrence, and 10 V more.
 *
 * Rules that do not erase know what they write, and go chunk by chunk (chunk.h): two products with the state, and a
 * triangular one. Nothing takes from the state again what rounding has put there, so it is rounded only once a chunk.
 *
 * Derived in docs/mathematics/rules.md. */
#include "kernels/rules/family/slab.h"

#include "kernels/base/gemm.h"
#include "kernels/rules/family/quad.h"

/* x S, QUAD rows x on nv vectors of columns */
ALWAYS_INLINE void read_rows(size_t nv, size_t K, const real *x, size_t ld, const real *S, vec read[QUAD][BLOCK])
{
    vec sums[QUAD][BLOCK];
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            sums[t][v] = (vec){0};
    for (size_t i = 0; i < K; i++, S += SLAB) {
        vec s[BLOCK];
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            s[v] = vec_load(S + v * FWM_LANES);
#pragma GCC unroll 4
        for (size_t t = 0; t < QUAD; t++)
#pragma GCC unroll 2
            for (size_t v = 0; v < nv; v++)
                sums[t][v] += x[t * ld + i] * s[v];
    }
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            read[t][v] = sums[t][v];
}

/* The same of x and y at once, where there are registers for both. */
ALWAYS_INLINE void read_both(size_t nv, size_t K, const real *x, const real *y, size_t ld, const real *S,
                             vec read_x[QUAD][BLOCK], vec read_y[QUAD][BLOCK])
{
#if FWM_VECTOR_BYTES < 64
    read_rows(nv, K, x, ld, S, read_x);
    read_rows(nv, K, y, ld, S, read_y);
#else
    vec sums[2 * QUAD][BLOCK];
#pragma GCC unroll 8
    for (size_t t = 0; t < 2 * QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            sums[t][v] = (vec){0};
    for (size_t i = 0; i < K; i++, S += SLAB) {
        vec s[BLOCK];
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            s[v] = vec_load(S + v * FWM_LANES);
#pragma GCC unroll 8
        for (size_t t = 0; t < 2 * QUAD; t++) {
            const real number = t < QUAD ? x[t * ld + i] : y[(t - QUAD) * ld + i];
#pragma GCC unroll 2
            for (size_t v = 0; v < nv; v++)
                sums[t][v] += number * s[v];
        }
    }
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++) {
            read_x[t][v] = sums[t][v];
            read_y[t][v] = sums[QUAD + t][v];
        }
#endif
}

/* S = c S0 + k^T n */
ALWAYS_INLINE void write_rows(size_t nv, bool folds, size_t K, const real *k, size_t ld, Decay c, vec n[QUAD][BLOCK],
                              const real *S0, real *S)
{
    vec written[QUAD][BLOCK]; /* a copy that no store can change: it stays in registers */
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            written[t][v] = n[t][v];
    for (size_t i = 0; i < K; i++, S0 += SLAB, S += SLAB) {
        vec s[BLOCK];
        write_row(nv, folds, i, k, ld, c, written, S0, S, s);
    }
}

/* Quad i on nv vectors of columns, from column j of the span's rows on. */
ALWAYS_INLINE void block_forward(size_t nv, bool scaled, const Span *span, size_t i, const SpanRows *rows, size_t j,
                                 const real *S0, real *S, real *N)
{
    const FamilyShape *shape = &span->shape;
    const size_t K = shape->K, ld = shape->ld, R = shape->readers - 1, row = i * QUAD;
    const real *pairs = span->pairs + i * (R ? R : 1) * PAIRS, *e = span->e0 + row * ld, *q = span->q0 + row * ld;
    vec n[QUAD][BLOCK], read[QUAD][BLOCK], read_first[QUAD][BLOCK];
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            n[t][v] = vec_load(rows->u + (row + t) * rows->ld_u + j + v * FWM_LANES);
    if (rows->factors)
        scale_rows(nv, rows->factors + row, n);
    if (R)
        read_both(nv, K, e, q, ld, S0, read, read_first);
    else
        read_rows(nv, K, e, ld, S0, read);
    if (scaled)
        scale_rows(nv, span->erases + row, read);
    solve(nv, pairs, read, n);
    for (size_t query = 0; query < R; query++) {
        const size_t first = query * SPAN + row;
        if (query)
            read_rows(nv, K, span->q0 + first * ld, ld, S0, read_first);
        if (scaled)
            scale_rows(nv, span->reads + first, read_first);
        store_read(nv, pairs + query * PAIRS, read_first, n, shape->normalize ? span->reciprocal + first : NULL,
                   rows->o + query * rows->per_query + row * rows->ld_o + j, rows->ld_o);
    }
#pragma GCC unroll 4
    for (size_t t = 0; N && t < QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            vec_store(N + t * SLAB + v * FWM_LANES, n[t][v]);
    if (scaled)
        scale_rows(nv, span->writes + row, n);
    if (span->folds[i])
        write_rows(nv, true, K, span->k1 + row * ld, ld, span->c_of_fold[i], n, S0, S);
    else
        write_rows(nv, false, K, span->k1 + row * ld, ld, (Decay){0}, n, S0, S);
}

ALWAYS_INLINE void blocks_forward(bool scaled, const Span *span, size_t i, const SpanRows *rows, const Slab *slab,
                                  const real *S0, real *S, real *N)
{
    size_t j = 0;
    for (; j + BLOCK * FWM_LANES <= slab->padded; j += BLOCK * FWM_LANES)
        block_forward(BLOCK, scaled, span, i, rows, slab->j0 + j, S0 + j, S + j, N ? N + j : NULL);
    for (; j < slab->padded; j += FWM_LANES)
        block_forward(1, scaled, span, i, rows, slab->j0 + j, S0 + j, S + j, N ? N + j : NULL);
}

void quad_forward(const Span *span, size_t i, const SpanRows *rows, const Slab *slab, const real *S0, real *S, real *N)
{
    if (span->shape.gate == FWM_CHANNEL_GATE)
        blocks_forward(false, span, i, rows, slab, S0, S, N);
    else
        blocks_forward(true, span, i, rows, slab, S0, S, N);
}

const real *fold_slab(const Span *span, size_t i, const real *S, real *folded)
{
    const Decay c = span->c_of_fold[i];
    if (span->folds[i] || span->shape.gate == FWM_NO_GATE)
        return S;
    for (size_t row = 0; row < span->shape.K; row++)
        for (size_t j = row * SLAB; j < (row + 1) * SLAB; j += FWM_LANES) {
            const vec s = vec_load(S + j);
            vec_store(folded + j, c.rest[row] * s + vec_masked(s, c.one_more[row]));
        }
    return folded;
}

void update_slab(const Chunk *c, const Slab *slab, const real *S0, const real *N, size_t ld, real *S)
{
    const FamilyShape *s = &c->shape;
    gemm_decayed(s->K, slab->padded, CHUNK, rows_of(c->k1_t, CHUNK), N, ld, c->in_two, S0, S, SLAB);
}

/* O_t += sum_{s <= t} P_ts N_s, a vector of columns at a time; rows of ld numbers */
static void read_chunk(size_t columns, const real *P, const real *N, real *O, size_t ld)
{
    for (size_t j = 0; j < columns; j += FWM_LANES) {
        vec n[CHUNK];
#pragma GCC unroll 16
        for (size_t t = 0; t < CHUNK; t++) {
            n[t] = vec_load(N + t * ld + j);
            vec o = vec_load(O + t * ld + j);
#pragma GCC unroll 16
            for (size_t s = 0; s <= t; s++)
                o += P[t * CHUNK + s] * n[s];
            vec_store(O + t * ld + j, o);
        }
    }
}

void chunk_of_sums_forward(const Chunk *c, size_t i, const SpanRows *rows, const Slab *slab, real *S)
{
    const FamilyShape *s = &c->shape;
    const size_t ld = rows->ld_u;
    const real *N = rows->u + i * CHUNK * ld + slab->j0;
    for (size_t query = 0; query < s->readers; query++) {
        real *o = rows->o + query * rows->per_query + i * CHUNK * ld + slab->j0;
        gemm(CHUNK, slab->padded, s->K, rows_of(c->x0 + query * CHUNK * s->ld, s->ld), S, SLAB, 0, NULL, o, ld);
        read_chunk(slab->padded, c->scores + query * CHUNK * CHUNK, N, o, ld);
        for (size_t t = 0; s->normalize && t < c->n; t++)
            scale(slab->padded, c->reciprocal[query * CHUNK + t], o + t * ld, o + t * ld);
    }
    update_slab(c, slab, S, N, ld, S);
}
