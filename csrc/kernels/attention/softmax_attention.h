/* Softmax attention: what the table offers, and the pass over the rows that its backward shares with its forward. */
#ifndef FWM_KERNELS_ATTENTION_SOFTMAX_ATTENTION_H
#define FWM_KERNELS_ATTENTION_SOFTMAX_ATTENTION_H

#include "api/kernels.h"
#include "kernels/base/real.h"

#define attention_forward_scratch FWM_NAME(attention_forward_scratch)
#define attention_backward_scratch FWM_NAME(attention_backward_scratch)
#define attention_forward FWM_NAME(attention_forward)
#define attention_backward FWM_NAME(attention_backward)
#define attention_rows FWM_NAME(attention_rows)
#define decode_rows FWM_NAME(decode_rows)
#define decode_scratch FWM_NAME(decode_scratch)

/* The passes of the operation; the call is an FwmAttentionCall. */
size_t attention_forward_scratch(const void *call, int threads);
size_t attention_backward_scratch(const void *call, int threads);
void attention_forward(const void *call, int threads, void *scratch);
void attention_backward(const void *call, int threads, void *scratch);

/* The forward, with any of its results: o (B, T, HQ, V), lse (B, T, HQ), and delta (B, T, HQ), the product of dout and
 * o. NULL if not wanted. */
void attention_rows(const FwmAttentionCall *a, real *o, real *lse, real *delta, int threads, void *scratch);

/* The same for one token with a cache, where tiles of rows would be almost empty. */
#define FEW_QUERIES 4

static inline bool is_decoding(const FwmAttentionCall *a)
{
    return a->T == 1 && a->HQ <= FEW_QUERIES * a->H;
}

size_t decode_scratch(const FwmAttentionCall *a, int threads); /* bytes */
void decode_rows(const FwmAttentionCall *a, real *o, real *lse, real *delta, int threads, void *scratch);

#endif
