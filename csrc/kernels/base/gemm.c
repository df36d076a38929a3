/* Matrix products by micro-kernels, without packing.
 *
 * A tile of C, MR rows by NV vectors, stays in registers while k runs: NV vectors of B are loaded and MR numbers of A
 * are broadcast for MR * NV fused multiply-adds. The shapes keep MR * NV accumulators, NV vectors of B and a broadcast
 * within 32 registers (AVX-512) or 16 (AVX2, SSE), and keep at least 8 independent chains of additions in flight, for a
 * latency of 4 cycles on two units. k is cut into blocks (k_block) so that the panel of B, k_block rows of NV vectors,
 * stays in the first-level cache while A streams past it. */
#include "kernels/base/gemm.h"

#include "kernels/base/vector.h"

/* A factor for each row of C0; a stride of 0 gives all rows the same one. */
typedef struct {
    const real *data; /* of row i: data[i * row] */
    size_t row;
} Factors;

static inline Factors factors_from(Factors f, size_t row)
{
    return f.data ? (Factors){f.data + row * f.row, f.row} : f;
}

static const Decay no_decay = {NULL, NULL};
static const Factors no_factors = {NULL, 0};

static inline Decay decay_from(Decay d, size_t row)
{
    return d.rest ? (Decay){d.rest + row, d.one_more + row} : no_decay;
}

/* rows_: a column of tiles, m rows (a multiple of MR) by NV vectors. C = diag(gamma) C0 + A B; without gamma C0, with
 * the decay if there is one, is added last. */
/* clang-format mistakes _Pragma for a call. */
/* clang-format off */
#define MICRO_KERNEL(MR, NV)                                                                                           \
    static void tile_##MR##x##NV(size_t k, const real *a, size_t row, size_t column, const real *b, size_t ldb,        \
                                 Factors gamma, Decay decay, const real *c0, real *c, size_t ldc)                      \
    {                                                                                                                  \
        vec acc[MR][NV];                                                                                               \
        _Pragma("GCC unroll 16") for (size_t i = 0; i < MR; i++)                                                       \
            _Pragma("GCC unroll 4") for (size_t v = 0; v < NV; v++)                                                    \
                acc[i][v] = c0 && gamma.data ? gamma.data[i * gamma.row] * vec_load(c0 + i * ldc + v * FWM_LANES)      \
                                             : (vec){0};                                                               \
        for (size_t kk = 0; kk < k; kk++) {                                                                            \
            vec along[NV];                                                                                             \
            _Pragma("GCC unroll 4") for (size_t v = 0; v < NV; v++)                                                    \
                along[v] = vec_load(b + v * FWM_LANES);                                                                \
            _Pragma("GCC unroll 16") for (size_t i = 0; i < MR; i++) {                                                 \
                const real x = a[i * row];                                                                             \
                _Pragma("GCC unroll 4") for (size_t v = 0; v < NV; v++)                                                \
                    acc[i][v] += x * along[v];                                                                         \
            }                                                                                                          \
            a += column;                                                                                               \
            b += ldb;                                                                                                  \
        }                                                                                                              \
        if (decay.rest)                                                                                                \
            _Pragma("GCC unroll 16") for (size_t i = 0; i < MR; i++)                                                   \
                _Pragma("GCC unroll 4") for (size_t v = 0; v < NV; v++) {                                              \
                    const vec x = vec_load(c0 + i * ldc + v * FWM_LANES);                                              \
                    acc[i][v] = (acc[i][v] + decay.rest[i] * x) + vec_masked(x, decay.one_more[i]);                    \
                }                                                                                                      \
        else if (c0 && !gamma.data)                                                                                    \
            _Pragma("GCC unroll 16") for (size_t i = 0; i < MR; i++)                                                   \
                _Pragma("GCC unroll 4") for (size_t v = 0; v < NV; v++)                                                \
                    acc[i][v] += vec_load(c0 + i * ldc + v * FWM_LANES);                                               \
        _Pragma("GCC unroll 16") for (size_t i = 0; i < MR; i++)                                                       \
            _Pragma("GCC unroll 4") for (size_t v = 0; v < NV; v++)                                                    \
                vec_store(c + i * ldc + v * FWM_LANES, acc[i][v]);                                                     \
    }                                                                                                                  \
    static void rows_##MR##x##NV(size_t m, size_t k, Strided a, const real *b, size_t ldb, Factors gamma, Decay decay, \
                                 const real *c0, real *c, size_t ldc)                                                  \
    {                                                                                                                  \
        for (size_t i = 0; i < m; i += MR)                                                                             \
            tile_##MR##x##NV(k, a.data + i * a.row, a.row, a.column, b, ldb, factors_from(gamma, i),                   \
                             decay_from(decay, i), c0 ? c0 + i * ldc : NULL, c + i * ldc, ldc);                        \
    }
/* clang-format on */

typedef void (*MicroKernel)(size_t m, size_t k, Strided a, const real *b, size_t ldb, Factors gamma, Decay decay,
                            const real *c0, real *c, size_t ldc);

typedef struct {
    size_t rows;
    MicroKernel run;
} TileShape;

/* For each width in vectors, the shapes of tiles, the highest first. Rows are divided evenly among as few tiles as the
 * highest shape allows: 32 rows are four tiles of 8; 10 rows are 6 and 4, not 8 and 2, because a tile of 2 has too few
 * independent chains of additions. */
#if FWM_VECTOR_BYTES == 64
#define FWM_MAX_VECTORS 4
MICRO_KERNEL(6, 4)
MICRO_KERNEL(4, 4)
MICRO_KERNEL(2, 4)
MICRO_KERNEL(1, 4)
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
static const TileShape four_vectors[] = {{6, rows_6x4}, {4, rows_4x4}, {2, rows_2x4}, {1, rows_1x4}};
static const TileShape two_vectors[] = {{8, rows_8x2}, {6, rows_6x2}, {4, rows_4x2}, {2, rows_2x2}, {1, rows_1x2}};
static const TileShape one_vector[] = {{16, rows_16x1}, {8, rows_8x1}, {4, rows_4x1}, {2, rows_2x1}, {1, rows_1x1}};
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
static const TileShape two_vectors[] = {{6, rows_6x2}, {4, rows_4x2}, {2, rows_2x2}, {1, rows_1x2}};
static const TileShape one_vector[] = {{12, rows_12x1}, {8, rows_8x1}, {4, rows_4x1}, {2, rows_2x1}, {1, rows_1x1}};
#endif

#define PANEL_BYTES (24 * 1024) /* of B, in the first-level cache */
#define ROWS_IN_BLOCK 96 /* of A, multiplied with a panel of B before the next panel; in the second-level cache */

static const real one[] = {1};

static const TileShape *shapes_for(size_t vectors, size_t *width)
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

static void multiply(size_t m, size_t n, size_t k, Strided a, const real *b, size_t ldb, Factors gamma, Decay decay,
                     const real *c0, real *c, size_t ldc)
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
            size_t width;
            for (size_t j = 0; j < n; j += width * FWM_LANES) {
                const TileShape *shape = shapes_for((n - j) / FWM_LANES, &width);
                const size_t even = fwm_tiles(i1 - i0, fwm_tiles(i1 - i0, shape->rows));
                while (shape->rows > even && shape[1].rows >= even)
                    shape++;
                for (size_t i = i0, rows; i < i1; i += rows) {
                    while (shape->rows > i1 - i)
                        shape++;
                    rows = (i1 - i) / shape->rows * shape->rows;
                    const Strided a_rows = {a.data + i * a.row + k0 * a.column, a.row, a.column};
                    const Factors scale = k0 ? (Factors){one, 0} : factors_from(gamma, i);
                    const Decay first = k0 ? no_decay : decay_from(decay, i);
                    shape->run(rows, k_here, a_rows, b + k0 * ldb + j, ldb, scale, first,
                               start ? start + i * ldc + j : NULL, c + i * ldc + j, ldc);
                }
            }
            k0 += k_here;
        } while (k0 < k);
    }
}

void gemm(size_t m, size_t n, size_t k, Strided a, const real *b, size_t ldb, real gamma, const real *c0, real *c,
          size_t ldc)
{
    multiply(m, n, k, a, b, ldb, (Factors){&gamma, 0}, no_decay, c0, c, ldc);
}

void gemm_decayed(size_t m, size_t n, size_t k, Strided a, const real *b, size_t ldb, Decay decay, const real *c0,
                  real *c, size_t ldc)
{
    multiply(m, n, k, a, b, ldb, decay.rest ? no_factors : (Factors){one, 0}, decay, c0, c, ldc);
}

void gemm_added(size_t m, size_t n, size_t k, Strided a, const real *b, size_t ldb, real *c, size_t ldc)
{
    multiply(m, n, k, a, b, ldb, no_factors, no_decay, c, c, ldc);
}
