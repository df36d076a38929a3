/* What a block reads: its filters, and the sequences that its tokens belong to.
 *
 * See docs/mathematics/causal_conv1d.md. */
#include "kernels/convolution/block.h"

const real zero_row[BLOCK_CHANNELS] = {0};

/* Inlined for each W, because a call with a single token is about as much work as this transpose. */
ALWAYS_INLINE void transpose_weights(size_t W, size_t n, const real *restrict weight, BlockFilters *restrict f)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        for (size_t w = 0; w < W; w++)
            f->weight[w][i] = weight[i * W + w];
}

void load_filters(const FwmConvolutionCall *c, const ConvolutionBlock *b, BlockFilters *f)
{
    const real *weight = (const real *)c->weight + b->channel * c->W;
    switch (c->W) {
    case 2: transpose_weights(2, b->n, weight, f); break;
    case 3: transpose_weights(3, b->n, weight, f); break;
    case 4: transpose_weights(4, b->n, weight, f); break;
    default: transpose_weights(c->W, b->n, weight, f);
    }
    const size_t padded = fwm_tiles(b->n, FWM_LANES) * FWM_LANES;
    for (size_t w = 0; w < c->W; w++)
        for (size_t i = b->n; i < padded; i++)
            f->weight[w][i] = 0;
    load_row(b->n, padded, c->bias ? (const real *)c->bias + b->channel : NULL, f->bias);
}

/* By bisection: the last sequence that begins at this token or before it. Empty ones that begin there come first. */
size_t sequence_of_token(const FwmConvolutionCall *c, size_t token)
{
    size_t low = 0, high = c->n_sequences;
    while (high - low > 1) {
        const size_t middle = low + (high - low) / 2;
        if ((size_t)c->offsets[middle] <= token)
            low = middle;
        else
            high = middle;
    }
    return low;
}
