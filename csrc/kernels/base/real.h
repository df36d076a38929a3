/* The number type of the kernels, and the names of their symbols.
 *
 * Every file below csrc/kernels is compiled once for each precision and each variant of the instruction set; the build
 * defines FWM_REAL_IS_DOUBLE, FWM_VARIANT (baseline, avx2, ..) and FWM_VECTOR_BYTES. A function that is called from
 * another file gets its name from FWM_NAME, so that all copies can be linked into one library:
 *
 *     #define gemm FWM_NAME(gemm)          ->  fwm_gemm_avx512_f32, fwm_gemm_avx512_f64, ...
 */
#ifndef FWM_KERNELS_BASE_REAL_H
#define FWM_KERNELS_BASE_REAL_H

#include <stddef.h>
#include <stdint.h>

#if FWM_REAL_IS_DOUBLE
typedef double real;
#define FWM_PRECISION f64
#define FWM_PRECISION_NAME "float64"
#define FWM_REAL_BYTES 8
#else
typedef float real;
#define FWM_PRECISION f32
#define FWM_PRECISION_NAME "float32"
#define FWM_REAL_BYTES 4
#endif

#define FWM_JOIN_(stem, variant, precision) fwm_##stem##_##variant##_##precision
#define FWM_JOIN(stem, variant, precision) FWM_JOIN_(stem, variant, precision)
#define FWM_NAME(stem) FWM_JOIN(stem, FWM_VARIANT, FWM_PRECISION)
#define FWM_TEXT_(x) #x
#define FWM_TEXT(x) FWM_TEXT_(x)

#define ALWAYS_INLINE static inline __attribute__((always_inline))

#include "api/sizes.h"

#endif
