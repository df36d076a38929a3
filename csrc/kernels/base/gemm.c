/* Matrix products: two micro-kernels, no packing.
 *
 * gemm: a tile of C, MR rows by NV vectors, stays in registers while k runs: NV vectors of B are loaded and MR numbers of A are
 * broadcast for MR * NV fused multiply-adds. The shapes keep MR * NV accumulators, NV vectors of B and a broadcast
 * within 32 registers (AVX-512) or 16 (AVX2, SSE), and at least 8 chains in flight against a latency of 4 and two units.
 * Blocks of k are chosen so that the panel of B (KC x NV vectors) stays in the first-level cache; A streams past it. */
#include "kernels/base/gemm.h"

#include "kernels/base/vector.h"

#define MICRO_KERNEL(MR, NV)                                                                                                \
    static void tile_##MR##x##NV(size_t k, Strided a, const real *b, size_t ldb, real gamma, const real *c0, real *c,        \
                                 size_t ldc)                                                                                 \
    {                                                                                                                        \
        vec acc[MR][NV];                                                                                                     \
        _Pragma("GCC unroll 16") for (size_t i = 0; i < MR; i++)                                                             \
            _Pragma("GCC unroll 4") for (size_t v = 0; v < NV; v++)                                                          \
                acc[i][v] = c0 ? gamma * vec_load(c0 + i * ldc + v * FWM_LANES) : (vec){0};                                  \
        for (size_t kk = 0; kk < k; kk++) {                                                                                  \
            vec row[NV];                                                                                                     \
            _Pragma("GCC unroll 4") for (size_t v = 0; v < NV; v++)                                                          \
                row[v] = vec_load(b + v * FWM_LANES);                                                                        \
            _Pragma("GCC unroll 16") for (size_t i = 0; i < MR; i++) {                                                       \
                const real x = a.data[i * a.row];                                                                            \
                _Pragma("GCC unroll 4") for (size_t v = 0; v < NV; v++)                                                      \
                    acc[i][v] += x * row[v];                                                                                 \
            }                                                                                                                \
            a.data += a.column;                                                                                              \
            b += ldb;                                                                                                        \
        }                                                                                                                    \
        _Pragma("GCC unroll 16") for (size_t i = 0; i < MR; i++)                                                             \
            _Pragma("GCC unroll 4") for (size_t v = 0; v < NV; v++)                                                          \
                vec_store(c + i * ldc + v * FWM_LANES, acc[i][v]);                                                           \
    }

typedef void (*MicroKernel)(size_t k, Strided a, const real *b, size_t ldb, real gamma, const real *c0, real *c, size_t ldc);

typedef struct {
    size_t rows;
    MicroKernel run;
} Shape;

/* For each width in vectors, the tiles from high to low. Rows are dealt into as few tiles as the highest allows, and evenly:
 * 32 rows are four tiles of 8, not three of 10 and one of 2, whose chains would wait for themselves. */
#if FWM_VECTOR_BYTES == 64
#define FWM_MAX_VECTORS 4
MICRO_KERNEL(6, 4)
MICRO_KERNEL(4, 4)
MICRO_KERNEL(2, 4)
MICRO_KERNEL(1, 4)
MICRO_KERNEL(10, 2)
MICRO_KERNEL(8, 2)
MICRO_KERNEL(6, 2)
MICRO_KERNEL(4, 2)
MICRO_KERNEL(2, 2)
MICRO_KERNEL(1, 2)
MICRO_KERNEL(16, 1)
MICRO_KERNEL(8, 1)
MICRO_KERNEL(4, 1)
MICRO_KERNEL(2, 1)
MICRO_KERNEL(1, 1)
static const Shape four_vectors[] = {{6, tile_6x4}, {4, tile_4x4}, {2, tile_2x4}, {1, tile_1x4}};
static const Shape two_vectors[] = {{10, tile_10x2}, {8, tile_8x2}, {6, tile_6x2}, {4, tile_4x2}, {2, tile_2x2}, {1, tile_1x2}};
static const Shape one_vector[] = {{16, tile_16x1}, {8, tile_8x1}, {4, tile_4x1}, {2, tile_2x1}, {1, tile_1x1}};
#else
#define FWM_MAX_VECTORS 2
MICRO_KERNEL(6, 2)
MICRO_KERNEL(4, 2)
MICRO_KERNEL(2, 2)
MICRO_KERNEL(1, 2)
MICRO_KERNEL(12, 1)
MICRO_KERNEL(8, 1)
MICRO_KERNEL(4, 1)
MICRO_KERNEL(2, 1)
MICRO_KERNEL(1, 1)
static const Shape two_vectors[] = {{6, tile_6x2}, {4, tile_4x2}, {2, tile_2x2}, {1, tile_1x2}};
static const Shape one_vector[] = {{12, tile_12x1}, {8, tile_8x1}, {4, tile_4x1}, {2, tile_2x1}, {1, tile_1x1}};
#endif

#define PANEL_BYTES (24 * 1024) /* of B in the first-level cache */
#define ROWS_IN_BLOCK 96        /* rows of A that pass a panel of B before the next one: a block of A in the second level */

static const Shape *shapes_for(size_t vectors, size_t *width)
{
#if FWM_MAX_VECTORS == 4
    if (vectors >= 4) {
        *width = 4;
        return four_vectors;
    }
#endif
    if (vectors >= 2) {
        *width = 2;
        return two_vectors;
    }
    *width = 1;
    return one_vector;
}

void gemm(size_t m, size_t n, size_t k, Strided a, const real *b, size_t ldb, real gamma, const real *c0, real *c, size_t ldc)
{
    if (n == 0)
        return;
    const size_t k_block = PANEL_BYTES / (fwm_min(FWM_MAX_VECTORS, n / FWM_LANES) * FWM_VECTOR_BYTES);
    for (size_t i0 = 0; i0 < m; i0 += ROWS_IN_BLOCK) {
        const size_t i1 = fwm_min(m, i0 + ROWS_IN_BLOCK);
        size_t k0 = 0;
        do {
            const size_t k_here = fwm_min(k_block, k - k0);
            const real *start = k0 ? c : c0;
            const real scale = k0 ? 1 : gamma;
            size_t width;
            for (size_t j = 0; j < n; j += width * FWM_LANES) {
                const Shape *shape = shapes_for((n - j) / FWM_LANES, &width);
                const size_t even = fwm_tiles(i1 - i0, fwm_tiles(i1 - i0, shape->rows));
                while (shape->rows > even && shape[1].rows >= even)
                    shape++;
                for (size_t i = i0; i < i1; i += shape->rows) {
                    while (shape->rows > i1 - i)
                        shape++;
                    const Strided a_tile = {a.data + i * a.row + k0 * a.column, a.row, a.column};
                    shape->run(k_here, a_tile, b + k0 * ldb + j, ldb, scale, start ? start + i * ldc + j : NULL,
                               c + i * ldc + j, ldc);
                }
            }
            k0 += k_here;
        } while (k0 < k);
    }
}

/* rank_update: RANK rows of B, a vector wide, stay in registers while the rows of C pass: for small k, tiles of C would be loaded
 * and stored too often. Row by row, numbers of A are broadcast; the chains of different rows overlap. */
#define RANK (FWM_VECTOR_BYTES == 64 ? 16 : 8)

static void update_rows(size_t m, const real *a, size_t lda, const real *b, size_t ldb, const real *gamma, const real *c0, real *c,
                        size_t ldc)
{
    vec row[RANK];
#pragma GCC unroll 16
    for (size_t t = 0; t < RANK; t++)
        row[t] = vec_load(b + t * ldb);
    for (size_t i = 0; i < m; i++, a += lda, c += ldc) {
        vec acc = {0};
        if (c0)
            acc = (gamma ? gamma[i] : 1) * vec_load(c0 + i * ldc);
#pragma GCC unroll 16
        for (size_t t = 0; t < RANK; t++)
            acc += a[t] * row[t];
        vec_store(c, acc);
    }
}

void rank_update(size_t m, size_t n, size_t k, const real *a, size_t lda, const real *b, size_t ldb, const real *gamma,
                 const real *c0, real *c, size_t ldc)
{
    for (size_t j = 0; j < n; j += FWM_LANES) {
        update_rows(m, a, lda, b + j, ldb, gamma, c0 ? c0 + j : NULL, c + j, ldc);
        for (size_t t = RANK; t < k; t += RANK)
            update_rows(m, a + t, lda, b + t * ldb + j, ldb, NULL, c + j, c + j, ldc);
    }
}
