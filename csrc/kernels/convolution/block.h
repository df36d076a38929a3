/* How a convolution is cut into blocks.
 *
 * A block is a range of tokens, counted over all sequences, on a range of channels. It consists of rows, one a token:
 * vectors run along the channels, and the W rows that a token sees come from the first-level cache. The cut of tokens
 * depends neither on the number of threads nor on where sequences begin, so that many short sequences are no more work
 * than a long one. */
#ifndef FWM_KERNELS_CONVOLUTION_BLOCK_H
#define FWM_KERNELS_CONVOLUTION_BLOCK_H

#include <stdbool.h>

#include "api/kernels.h"
#include "kernels/base/vector.h"

#define load_filters FWM_NAME(load_filters)
#define filter_token FWM_NAME(filter_token)
#define sequence_of_token FWM_NAME(sequence_of_token)
#define zero_row FWM_NAME(zero_row)

#define BLOCK_TOKENS 256
#define BLOCK_CHANNELS (1024 / FWM_REAL_BYTES)

/* From here on outputs go past the caches: with x they no longer fit into a third-level cache of 32 MB, and whoever
 * reads them fetches them from memory anyway. Two threads of a Zen 4, at 16 MB: 1.1 ms in place of 1.7, backward 3.0 in
 * place of 3.5; at 67 MB 4.7 and 7.3, 8.5 and 10.6. (The call itself is quicker for it from 4 MB on.) */
#define STREAMED_BYTES ((size_t)16 << 20)

static inline size_t token_blocks(const FwmConvolutionCall *c)
{
    return fwm_tiles((size_t)c->offsets[c->n_sequences], BLOCK_TOKENS);
}

static inline size_t numbers_of_x(const FwmConvolutionCall *c)
{
    return (size_t)c->offsets[c->n_sequences] * c->D;
}

/* y, or in a backward dx: what the blocks write. */
static inline const real *output_of(const FwmConvolutionCall *c)
{
    return c->dx ? c->dx : c->y;
}

/* Whether blocks write past the caches: it takes whole cache lines, and so rows that lie alike in them. */
static inline bool streams(const FwmConvolutionCall *c)
{
    return numbers_of_x(c) * sizeof(real) >= STREAMED_BYTES && c->D * sizeof(real) % CACHE_LINE == 0;
}

/* By how many channels the blocks are moved to the left, so that those that stream begin at a cache line of the output.
 * Of the first block only the channels before the first line are left. */
static inline size_t block_shift(const FwmConvolutionCall *c)
{
    const size_t behind = (uintptr_t)output_of(c) % CACHE_LINE;
    return streams(c) && behind ? BLOCK_CHANNELS - (CACHE_LINE - behind) / sizeof(real) : 0;
}

static inline size_t channel_blocks(const FwmConvolutionCall *c)
{
    return fwm_tiles(c->D + block_shift(c), BLOCK_CHANNELS);
}

typedef struct {
    size_t first, last; /* tokens first .. last - 1, counted over all sequences */
    size_t channel, n;  /* the first channel, and the number of channels */
    bool streams;
} ConvolutionBlock;

static inline ConvolutionBlock block_at(const FwmConvolutionCall *c, size_t tokens, size_t channels)
{
    const size_t first = tokens * BLOCK_TOKENS, shift = block_shift(c), shifted = channels * BLOCK_CHANNELS;
    const size_t channel = shifted > shift ? shifted - shift : 0;
    return (ConvolutionBlock){.first = first,
                              .last = fwm_min(first + BLOCK_TOKENS, (size_t)c->offsets[c->n_sequences]),
                              .channel = channel,
                              .n = fwm_min(shifted + BLOCK_CHANNELS - shift, c->D) - channel,
                              .streams = streams(c) && (uintptr_t)(output_of(c) + channel) % CACHE_LINE == 0};
}

/* The weights of a block's channels, transposed: a row for each of the W tokens that a token sees, the oldest first.
 * Rows are padded with zeros to whole vectors. */
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

/* The rows of a block are far apart, and the processor does not foresee where the next one begins: while a row is
 * computed, the one of this many tokens later is asked for, a line at a time. At once they would wait for each other.
 */
#define TOKENS_AHEAD 2

/* The row of the token that is asked for at token t. */
static inline ptrdiff_t token_ahead(const ConvolutionSequence *s, ptrdiff_t t)
{
    return t + TOKENS_AHEAD < s->length ? t + TOKENS_AHEAD : t;
}

/* Rows of W consecutive tokens. */
typedef struct {
    const real *row[FWM_MOST_TAPS];
} TokenWindow;

/* A window moves on by a token. */
static inline void push_row(TokenWindow *window, size_t W, const real *row)
{
    for (size_t w = 1; w < W; w++)
        window->row[w - 1] = window->row[w];
    window->row[W - 1] = row;
}

/* Copies of the last W rows, for long filters: rows of a call's array often lie a multiple of 4 kB apart, where more
 * than eight would take each other's place in the first-level cache. */
typedef struct {
    real row[FWM_MOST_TAPS][BLOCK_CHANNELS];
} KeptRows;

#define MOST_ROWS_IN_PLACE 4

/* A window moves on to token t, with its row of the call's array or a copy of it. */
static inline void push_token(TokenWindow *window, KeptRows *kept, size_t W, size_t n, size_t t, const real *row)
{
    if (W > MOST_ROWS_IN_PLACE) {
        copy(n, row, kept->row[t % W]);
        row = kept->row[t % W];
    }
    push_row(window, W, row);
}

/* The numbers of channels i .. i + lanes - 1 in a row of a call's array; the last vector of a block may be a part. */
ALWAYS_INLINE vec load_lanes(const real *row, size_t i, size_t lanes)
{
    return lanes == FWM_LANES ? vec_load(row + i) : vec_load_first(lanes, row + i);
}

ALWAYS_INLINE void store_lanes(bool streams, real *row, size_t i, size_t lanes, vec x)
{
    if (lanes < FWM_LANES)
        vec_store_first(lanes, row + i, x);
    else if (streams)
        vec_stream(row + i, x);
    else
        vec_store(row + i, x);
}

/* Row y of a token, from the W rows that it sees, while row `ahead` is prefetched; in forward.c. */
void filter_token(const FwmConvolutionCall *c, const ConvolutionBlock *b, const BlockFilters *f,
                  const TokenWindow *seen, const real *ahead, real *y);

/* The tokens that token t sees, the oldest first. */
static inline TokenWindow tokens_seen(const FwmConvolutionCall *c, const ConvolutionSequence *s, ptrdiff_t t)
{
    TokenWindow seen = {{NULL}};
    for (size_t w = 0; w < c->W; w++)
        seen.row[w] = token_at(c, s, t + 1 + (ptrdiff_t)w - (ptrdiff_t)c->W);
    return seen;
}

#endif
