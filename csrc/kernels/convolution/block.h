/* How a convolution is cut into blocks.
 *
 * A block is a range of tokens, counted over all sequences, on a range of channels. It consists of rows, one a token:
 * vectors run along the channels, and the W rows that a token sees come from the first-level cache. The cut depends
 * neither on the number of threads nor on where sequences begin, so that many short sequences are no more work than a
 * long one. */
#ifndef FWM_KERNELS_CONVOLUTION_BLOCK_H
#define FWM_KERNELS_CONVOLUTION_BLOCK_H

#include "api/kernels.h"
#include "kernels/base/real.h"

#define load_filters FWM_NAME(load_filters)
#define weighted_rows FWM_NAME(weighted_rows)
#define filter_token FWM_NAME(filter_token)
#define sequence_of_token FWM_NAME(sequence_of_token)
#define zero_row FWM_NAME(zero_row)

#define BLOCK_TOKENS 256
#define BLOCK_CHANNELS (2048 / FWM_REAL_BYTES)

static inline size_t token_blocks(const FwmConvolutionCall *c)
{
    return fwm_tiles((size_t)c->offsets[c->n_sequences], BLOCK_TOKENS);
}

static inline size_t channel_blocks(const FwmConvolutionCall *c)
{
    return fwm_tiles(c->D, BLOCK_CHANNELS);
}

static inline size_t numbers_of_x(const FwmConvolutionCall *c)
{
    return (size_t)c->offsets[c->n_sequences] * c->D;
}

typedef struct {
    size_t first, last; /* tokens first .. last - 1, counted over all sequences */
    size_t channel, n;  /* the first channel, and the number of channels */
} ConvolutionBlock;

static inline ConvolutionBlock block_at(const FwmConvolutionCall *c, size_t tokens, size_t channels)
{
    const size_t first = tokens * BLOCK_TOKENS, channel = channels * BLOCK_CHANNELS;
    return (ConvolutionBlock){.first = first,
                              .last = fwm_min(first + BLOCK_TOKENS, (size_t)c->offsets[c->n_sequences]),
                              .channel = channel,
                              .n = fwm_min(BLOCK_CHANNELS, c->D - channel)};
}

/* The weights of a block's channels, transposed: a row for each of the W tokens that a token sees, the oldest first. */
typedef struct {
    real weight[FWM_MOST_TAPS][BLOCK_CHANNELS], bias[BLOCK_CHANNELS];
} BlockFilters;

void load_filters(const FwmConvolutionCall *c, const ConvolutionBlock *b, BlockFilters *f);

/* A sequence as a block sees it, with its tokens counted from 0. */
typedef struct {
    size_t at, state_at; /* offsets of the block's first channel: in the sequence's first token, and in its state */
    ptrdiff_t length;
    ptrdiff_t from, to; /* its tokens from .. to - 1 are in the block */
} ConvolutionSequence;

static inline ConvolutionSequence sequence_at(const FwmConvolutionCall *c, const ConvolutionBlock *b, size_t index)
{
    const size_t start = (size_t)c->offsets[index], end = (size_t)c->offsets[index + 1];
    return (ConvolutionSequence){.at = start * c->D + b->channel,
                                 .state_at = index * (c->W - 1) * c->D + b->channel,
                                 .length = (ptrdiff_t)(end - start),
                                 .from = b->first > start ? (ptrdiff_t)(b->first - start) : 0,
                                 .to = (ptrdiff_t)fwm_min(b->last, end) - (ptrdiff_t)start};
}

/* The sequence that a token, counted over all sequences, belongs to. */
size_t sequence_of_token(const FwmConvolutionCall *c, size_t token);

extern const real zero_row[BLOCK_CHANNELS];

/* The row of token t > -W of a sequence; tokens before the first are in the initial state. */
static inline const real *token_at(const FwmConvolutionCall *c, const ConvolutionSequence *s, ptrdiff_t t)
{
    const real *state = c->initial_state;
    if (t >= 0)
        return (const real *)c->x + s->at + (size_t)t * c->D;
    return state ? state + s->state_at + (c->W - 1 - (size_t)-t) * c->D : zero_row;
}

/* Software prefetch of a row: the rows of a block are far apart, and the hardware prefetcher does not predict where the
 * next one begins. */
static inline void prefetch_row(const ConvolutionBlock *b, const real *row)
{
    for (size_t i = 0; i < b->n; i += 64 / sizeof(real))
        __builtin_prefetch(row + i);
}

/* Rows of W consecutive tokens. */
typedef struct {
    const real *row[FWM_MOST_TAPS];
} TokenWindow;

/* sum + sum_w weight_w row_w, for channel i. W is a compile-time constant at every call. */
ALWAYS_INLINE real weighted(size_t W, const BlockFilters *f, const TokenWindow *rows, size_t i, real sum)
{
    for (size_t w = 0; w < W; w++)
        sum += f->weight[w][i] * rows->row[w][i];
    return sum;
}

/* sum + sum_w weight_w row_w for all n channels, a row after the other: for filters of other lengths than 2 to 4. */
void weighted_rows(size_t W, size_t n, const BlockFilters *f, const TokenWindow *rows, const real *sum, real *total);

/* Row y of a token, from the W rows that it sees; in forward.c. */
void filter_token(const FwmConvolutionCall *c, size_t n, const BlockFilters *f, const TokenWindow *seen, real *y);

/* The tokens that token t sees, the oldest first. */
static inline TokenWindow tokens_seen(const FwmConvolutionCall *c, const ConvolutionSequence *s, ptrdiff_t t)
{
    TokenWindow seen = {{NULL}};
    for (size_t w = 0; w < c->W; w++)
        seen.row[w] = token_at(c, s, t + 1 + (ptrdiff_t)w - (ptrdiff_t)c->W);
    return seen;
}

#endif
