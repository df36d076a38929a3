/* The transpose, one square of whole vectors at a time. In stage s = 1, 2, 4, .. rows i and i + s (i without bit s)
 * exchange lanes: the upper row's lanes with bit s for the lower row's lanes without it. This transposes the 2 x 2
 * blocks of s x s numbers; after the last stage the square is transposed. */
#include "kernels/base/transpose.h"

#include "kernels/base/vector.h"

#if FWM_HAVE_SHUFFLE
/* clang-format mistakes _Pragma for a call. */
/* clang-format off */
#define STAGE(s)                                                                                                       \
    _Pragma("GCC unroll 16") for (size_t i = 0; i < FWM_LANES; i++)                                                    \
        if ((i & (s)) == 0) {                                                                                          \
            const vec upper = rows[i], lower = rows[i + (s)];                                                          \
            rows[i] = FWM_SHUFFLE(FWM_UPPER, upper, lower, s);                                          \
            rows[i + (s)] = FWM_SHUFFLE(FWM_LOWER, upper, lower, s);                                    \
        }
/* clang-format on */

static void transpose_square(const real *in, size_t ld_in, real *out, size_t ld_out)
{
    vec rows[FWM_LANES];
#pragma GCC unroll 16
    for (size_t i = 0; i < FWM_LANES; i++)
        rows[i] = vec_load(in + i * ld_in);
    STAGE(1)
#if FWM_LANES > 2
    STAGE(2)
#endif
#if FWM_LANES > 4
    STAGE(4)
#endif
#if FWM_LANES > 8
    STAGE(8)
#endif
#pragma GCC unroll 16
    for (size_t i = 0; i < FWM_LANES; i++)
        vec_store(out + i * ld_out, rows[i]);
}
#endif

static void transpose_tail(size_t m, size_t n, const real *restrict in, size_t ld_in, real *restrict out, size_t ld_out)
{
    for (size_t j = 0; j < n; j++)
        for (size_t i = 0; i < m; i++)
            out[j * ld_out + i] = in[i * ld_in + j];
}

void transpose(size_t m, size_t n, const real *in, size_t ld_in, real *out, size_t ld_out)
{
    for (size_t i = 0; i < m; i += FWM_LANES)
        for (size_t j = 0; j < n; j += FWM_LANES) {
            const size_t rows = fwm_min(FWM_LANES, m - i), columns = fwm_min(FWM_LANES, n - j);
            const real *from = in + i * ld_in + j;
            real *to = out + j * ld_out + i;
#if FWM_HAVE_SHUFFLE
            if (rows == FWM_LANES && columns == FWM_LANES) {
                transpose_square(from, ld_in, to, ld_out);
                continue;
            }
#endif
            transpose_tail(rows, columns, from, ld_in, to, ld_out);
        }
}
