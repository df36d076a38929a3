/* The update of a convolution's states: some tokens of each of many sequences, as a server decodes them. The equation
 * is that of forward.c; the tokens before the first stand in the sequence's state, which takes up the new ones in
 * place.
 *
 * See docs/mathematics/causal_conv1d.md. */
#include <string.h>

#include "kernels/base/vector.h"
#include "kernels/convolution/block.h"
#include "kernels/convolution/convolution.h"
#include "runtime/threads.h"

/* A sequence on a block of channels: where its first token, its output and its state have these channels. */
typedef struct {
    const FwmConvolutionUpdateCall *u;
    const real *x;
    real *y, *state;
    ptrdiff_t position; /* of its first token in a state that is a ring; -1: the state is not */
} Sequence;

/* The row of the state that holds a token of the call, or one before it (t < 0). */
static real *state_row(const Sequence *s, ptrdiff_t t)
{
    const ptrdiff_t L = (ptrdiff_t)s->u->L;
    const ptrdiff_t row = s->position < 0 ? L + t : ((s->position + t) % L + L) % L;
    return s->state + (size_t)row * s->u->convolution.D;
}

static const real *row_of(const Sequence *s, ptrdiff_t t)
{
    return t >= 0 ? s->x + (size_t)t * s->u->convolution.D : state_row(s, t);
}

static void filter_tokens(const Sequence *s, const ConvolutionBlock *b)
{
    const FwmConvolutionCall *c = &s->u->convolution;
    BlockFilters f;
    load_filters(c, b, &f);
    for (size_t t = 0; t < s->u->T; t++) {
        TokenWindow seen;
        for (size_t w = 0; w < c->W; w++)
            seen.row[w] = row_of(s, (ptrdiff_t)(t + 1 + w) - (ptrdiff_t)c->W);
        filter_token(c, b, &f, &seen, seen.row[c->W - 1], s->y + t * c->D);
    }
}

/* The last L tokens: in a ring those of the call go to their places; otherwise all rows move up. */
static void store_tokens(const Sequence *s, const ConvolutionBlock *b)
{
    const ptrdiff_t T = (ptrdiff_t)s->u->T, L = (ptrdiff_t)s->u->L;
    if (s->position < 0)
        for (ptrdiff_t row = 0; row < L && T > 0; row++)
            copy(b->n, row_of(s, T - L + row), s->state + (size_t)row * s->u->convolution.D);
    else
        for (ptrdiff_t t = T > L ? T - L : 0; t < T; t++)
            copy(b->n, row_of(s, t), state_row(s, t));
}

static void clear_outputs(const Sequence *s, const ConvolutionBlock *b)
{
    for (size_t t = 0; t < s->u->T; t++)
        memset(s->y + t * s->u->convolution.D, 0, b->n * sizeof(real));
}

static size_t blocks_of_channels(const FwmConvolutionUpdateCall *u)
{
    return fwm_tiles(u->convolution.D, BLOCK_CHANNELS);
}

static void update_task(void *context, size_t index, int thread)
{
    (void)thread;
    const FwmConvolutionUpdateCall *u = context;
    const FwmConvolutionCall *c = &u->convolution;
    const size_t i = index / blocks_of_channels(u), channel = index % blocks_of_channels(u) * BLOCK_CHANNELS;
    const ConvolutionBlock b = {.channel = channel, .n = fwm_min(BLOCK_CHANNELS, c->D - channel)};
    const size_t at = u->state_indices ? (size_t)u->state_indices[i] : i + 1;
    Sequence s = {.u = u,
                  .x = (const real *)c->x + i * u->T * c->D + channel,
                  .y = (real *)c->y + i * u->T * c->D + channel,
                  .position = u->positions ? u->positions[i] : -1};
    if (at == 0) {
        clear_outputs(&s, &b);
        return;
    }
    s.state = (real *)u->states + (at - 1) * u->L * c->D + channel;
    filter_tokens(&s, &b);
    store_tokens(&s, &b);
}

void convolution_update_states(const void *call, int threads, void *scratch)
{
    const FwmConvolutionUpdateCall *u = call;
    (void)scratch;
    const int few = fwm_threads_for(u->B * u->T * u->convolution.D, threads);
    fwm_parallel_for(few, u->B * blocks_of_channels(u), update_task, (void *)u);
}
