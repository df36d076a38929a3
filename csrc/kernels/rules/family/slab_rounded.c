/* The state on a slab, forward, read by products in bfloat16: see slab_rounded.h.
 *
 * Keys and queries are read as they are stored, and what they read is multiplied by what normalises, scales and decays
 * them, so that of the operands only the state is rounded. An instruction multiplies two rows of it. The write is that
 * of slab.c, and rounds what it has in registers anyhow.
 *
 * Derived in docs/mathematics/rules.md. */
#include "kernels/rules/family/slab_rounded.h"

#include "kernels/rules/family/quad.h"

#if FWM_BFLOAT16_PRODUCTS

static __m512i load_pairs(const uint16_t *x)
{
    return _mm512_loadu_si512(x);
}

static uint32_t load_pair(const uint16_t *x)
{
    uint32_t pair;
    memcpy(&pair, x, sizeof pair);
    return pair;
}

void round_slab(size_t K, const real *S, uint16_t *rounded)
{
    for (size_t i = 0; i < K; i += 2, S += 2 * SLAB, rounded += 2 * SLAB)
        for (size_t j = 0; j < SLAB; j += FWM_LANES) {
            const vec next = i + 1 < K ? vec_load(S + SLAB + j) : (vec){0};
            _mm512_storeu_si512(rounded + 2 * j, vec_round_pairs(vec_load(S + j), next));
        }
}

/* x S and, unless y is NULL, y S: QUAD rows each on nv vectors of columns */
ALWAYS_INLINE void read_rounded(size_t nv, size_t K, const uint16_t *x, const uint16_t *y, size_t ld,
                                const uint16_t *rounded, vec read_x[QUAD][BLOCK], vec read_y[QUAD][BLOCK])
{
    const size_t rows = y ? 2 * QUAD : QUAD;
    vec sums[2 * QUAD][BLOCK];
#pragma GCC unroll 8
    for (size_t t = 0; t < 2 * QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            sums[t][v] = (vec){0};
    for (size_t i = 0; i < K; i += 2, rounded += 2 * SLAB) {
        __m512i s[BLOCK];
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            s[v] = load_pairs(rounded + 2 * v * FWM_LANES);
#pragma GCC unroll 8
        for (size_t t = 0; t < rows; t++) {
            const uint32_t pair = load_pair(t < QUAD ? x + t * ld + i : y + (t - QUAD) * ld + i);
#pragma GCC unroll 2
            for (size_t v = 0; v < nv; v++)
                sums[t][v] = vec_add_pairs(sums[t][v], s[v], pair);
        }
    }
#pragma GCC unroll 8
    for (size_t t = 0; t < rows; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            (t < QUAD ? read_x[t] : read_y[t - QUAD])[v] = sums[t][v];
}

/* write_rows of slab.c, and the rounded copy of what is written */
ALWAYS_INLINE void write_rounded(size_t nv, bool folds, size_t K, const real *k, size_t ld, Decay c, vec n[QUAD][BLOCK],
                                 real *S, uint16_t *rounded)
{
    vec written[QUAD][BLOCK]; /* a copy that no store can change: it stays in registers */
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            written[t][v] = n[t][v];
    vec even[BLOCK], odd[BLOCK];
    size_t i = 0;
    for (; i + 2 <= K; i += 2, S += 2 * SLAB, rounded += 2 * SLAB) {
        write_row(nv, folds, i, k, ld, c, written, S, S, even);
        write_row(nv, folds, i + 1, k, ld, c, written, S + SLAB, S + SLAB, odd);
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            _mm512_storeu_si512(rounded + 2 * v * FWM_LANES, vec_round_pairs(even[v], odd[v]));
    }
    if (i == K)
        return;
    write_row(nv, folds, i, k, ld, c, written, S, S, even);
#pragma GCC unroll 2
    for (size_t v = 0; v < nv; v++)
        _mm512_storeu_si512(rounded + 2 * v * FWM_LANES, vec_round_pairs(even[v], (vec){0}));
}

/* Quad i on nv vectors of columns, from column j of the span's rows on. */
ALWAYS_INLINE void block_forward(size_t nv, const Span *span, size_t i, const SpanRows *rows, size_t j, real *S,
                                 uint16_t *rounded)
{
    const FamilyShape *shape = &span->shape;
    const size_t K = shape->K, ld = shape->ld, R = shape->readers - 1, row = i * QUAD;
    const real *pairs = span->pairs + i * R * PAIRS;
    vec n[QUAD][BLOCK], read[QUAD][BLOCK], read_query[QUAD][BLOCK];
#pragma GCC unroll 4
    for (size_t t = 0; t < QUAD; t++)
#pragma GCC unroll 2
        for (size_t v = 0; v < nv; v++)
            n[t][v] = vec_load(rows->u + (row + t) * rows->ld_u + j + v * FWM_LANES);
    read_rounded(nv, K, span->k_16 + row * ld, span->q_16 + row * ld, ld, rounded, read, read_query);
    scale_rows(nv, span->erases + row, read);
    solve(nv, pairs, read, n);
    for (size_t query = 0; query < R; query++) {
        const size_t first = query * SPAN + row;
        if (query)
            read_rounded(nv, K, span->q_16 + first * ld, NULL, ld, rounded, read_query, NULL);
        scale_rows(nv, span->reads + first, read_query);
        store_read(nv, pairs + query * PAIRS, read_query, n, shape->normalize ? span->reciprocal + first : NULL,
                   rows->o + first * rows->ld_o + j, rows->ld_o);
    }
    scale_rows(nv, span->writes + row, n);
    if (span->folds[i])
        write_rounded(nv, true, K, span->k1 + row * ld, ld, span->c_of_fold[i], n, S, rounded);
    else
        write_rounded(nv, false, K, span->k1 + row * ld, ld, (Decay){0}, n, S, rounded);
}

void quad_forward_rounded(const Span *span, size_t i, const SpanRows *rows, const Slab *slab, real *S,
                          uint16_t *rounded)
{
    size_t j = 0;
    for (; j + BLOCK * FWM_LANES <= slab->padded; j += BLOCK * FWM_LANES)
        block_forward(BLOCK, span, i, rows, slab->j0 + j, S + j, rounded + 2 * j);
    for (; j < slab->padded; j += FWM_LANES)
        block_forward(1, span, i, rows, slab->j0 + j, S + j, rounded + 2 * j);
}

#endif
