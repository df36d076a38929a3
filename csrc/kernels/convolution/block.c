/* What a block needs: its filters, and the sequences that its tokens are of. */
#include "kernels/convolution/block.h"

#include "kernels/base/vector.h"

const real no_token[BLOCK_CHANNELS] = {0};

/* A call with one token is about as much work as this. */
ALWAYS_INLINE void across(size_t W, size_t n, const real *restrict weight, Filters *restrict f)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        for (size_t w = 0; w < W; w++)
            f->weight[w][i] = weight[i * W + w];
}

void load_filters(const FwmConvolutionCall *c, const Block *b, Filters *f)
{
    const real *weight = (const real *)c->weight + b->channel * c->W;
    switch (c->W) {
    case 2: across(2, b->n, weight, f); break;
    case 3: across(3, b->n, weight, f); break;
    default: across(4, b->n, weight, f);
    }
    load_row(b->n, b->n, c->bias ? (const real *)c->bias + b->channel : NULL, f->bias);
}

/* The last that begins at this token or before it: those without tokens come before the one that has it. */
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
