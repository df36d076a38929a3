/* How a convolution is cut into blocks.
 *
 * A block is some tokens, of all sequences one behind the other, on some channels. Its numbers are rows of channels,
 * one a token: vectors go along the channels, and the W rows that a token sees come from the first-level cache. Blocks
 * are cut without regard to threads, and without regard to sequences, so that many short ones are no more work than a
 * long one. */
#ifndef FWM_KERNELS_CONVOLUTION_BLOCK_H
#define FWM_KERNELS_CONVOLUTION_BLOCK_H

#include "kernels/base/real.h"
#include "api/kernels.h"

#define load_filters FWM_NAME(load_filters)
#define sequence_of_token FWM_NAME(sequence_of_token)
#define no_token FWM_NAME(no_token)

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
    size_t first, last; /* tokens of all sequences */
    size_t channel, n;  /* the first, and how many */
} Block;

static inline Block block_at(const FwmConvolutionCall *c, size_t tokens, size_t channels)
{
    const size_t first = tokens * BLOCK_TOKENS, channel = channels * BLOCK_CHANNELS;
    return (Block){.first = first,
                   .last = fwm_min(first + BLOCK_TOKENS, (size_t)c->offsets[c->n_sequences]),
                   .channel = channel,
                   .n = fwm_min(BLOCK_CHANNELS, c->D - channel)};
}

/* The block's rows of weight, across: a row for each of the W tokens that a token sees, the oldest first. */
typedef struct {
    real weight[FWM_MOST_TAPS][BLOCK_CHANNELS], bias[BLOCK_CHANNELS];
} Filters;

void load_filters(const FwmConvolutionCall *c, const Block *b, Filters *f);

/* What a block sees of a sequence, with its tokens counted from 0. */
typedef struct {
    size_t at, state_at; /* where the block's first channel is, of its first token and of its states: in numbers */
    ptrdiff_t length;
    ptrdiff_t from, to; /* those of its tokens that are the block's */
} Sequence;

static inline Sequence sequence_at(const FwmConvolutionCall *c, const Block *b, size_t index)
{
    const size_t start = (size_t)c->offsets[index], end = (size_t)c->offsets[index + 1];
    return (Sequence){.at = start * c->D + b->channel,
                      .state_at = index * (c->W - 1) * c->D + b->channel,
                      .length = (ptrdiff_t)(end - start),
                      .from = b->first > start ? (ptrdiff_t)(b->first - start) : 0,
                      .to = (ptrdiff_t)fwm_min(b->last, end) - (ptrdiff_t)start};
}

size_t sequence_of_token(const FwmConvolutionCall *c, size_t token);

extern const real no_token[BLOCK_CHANNELS]; /* zeros */

/* Token t > -W of a sequence; those before the first are the initial state's. */
static inline const real *token_at(const FwmConvolutionCall *c, const Sequence *s, ptrdiff_t t)
{
    const real *state = c->initial_state;
    if (t >= 0)
        return (const real *)c->x + s->at + (size_t)t * c->D;
    return state ? state + s->state_at + (c->W - 1 - (size_t)-t) * c->D : no_token;
}

/* Asks for a row ahead of its time: a block's rows are far apart, and the processor does not foresee where the next
 * begins. */
static inline void ask_for(const Block *b, const real *row)
{
    for (size_t i = 0; i < b->n; i += 64 / sizeof(real))
        __builtin_prefetch(row + i);
}

/* W rows of a block. */
typedef struct {
    const real *row[FWM_MOST_TAPS];
} Rows;

/* sum_w weight_w row_w of channel i, added to `sum`. W is a number known to the compiler where this is called. */
ALWAYS_INLINE real weighted(size_t W, const Filters *f, const Rows *rows, size_t i, real sum)
{
    for (size_t w = 0; w < W; w++)
        sum += f->weight[w][i] * rows->row[w][i];
    return sum;
}

/* The tokens that token t sees, the oldest first. */
static inline Rows tokens_seen(const FwmConvolutionCall *c, const Sequence *s, ptrdiff_t t)
{
    Rows seen = {{NULL}};
    for (size_t w = 0; w < c->W; w++)
        seen.row[w] = token_at(c, s, t + 1 + (ptrdiff_t)w - (ptrdiff_t)c->W);
    return seen;
}

#endif
