/* A slab of a shape that rounds: beside the state in float32 it has a copy rounded to bfloat16, which readers in
 * bfloat16 read at half the instructions. What is written and kept is the state in float32. */
#ifndef FWM_KERNELS_RULES_FAMILY_SLAB_ROUNDED_H
#define FWM_KERNELS_RULES_FAMILY_SLAB_ROUNDED_H

#include "kernels/base/half.h"
#include "kernels/rules/family/slab.h"

#if FWM_BFLOAT16_PRODUCTS

#define round_slab FWM_NAME(round_slab)
#define quad_forward_rounded FWM_NAME(quad_forward_rounded)

/* rounded: pairs of rows 2i and 2i + 1, W pairs of numbers each; row K of an odd K is zeros. */
void round_slab(size_t K, const real *S, uint16_t *rounded);

/* quad_forward, in place, of the state and its copy. */
void quad_forward_rounded(const Span *, size_t i, const SpanRows *, const Slab *, real *S, uint16_t *rounded);

#else /* no shape rounds */

#define round_slab(K, S, rounded) ((void)(rounded))
#define quad_forward_rounded(span, i, rows, slab, S, rounded) ((void)(rounded))

#endif
#endif
