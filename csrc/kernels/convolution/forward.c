/* The causal convolution, forward, for token t of a sequence and each channel:
 *
 *     z_t = bias + sum_w weight_w x_{t - W + 1 + w},   y_t = z_t, or silu(z_t) = z_t / (1 + exp(-z_t))
 *
 * where x_{-1} .. x_{-W + 1} are the initial state, or zeros. The final state is x_{T - W + 1} .. x_{T - 1}.
 *
 * Derived in docs/mathematics/causal_conv1d.md. */
#include "kernels/convolution/block.h"
#include "kernels/convolution/convolution.h"
#include "kernels/convolution/silu.h"
#include "runtime/threads.h"

ALWAYS_INLINE vec filter_lanes(size_t W, bool with_silu, const BlockFilters *f, const TokenWindow *seen, size_t i,
                               size_t lanes)
{
    vec z = vec_load(f->bias + i);
    for (size_t w = 0; w < W; w++)
        z += vec_load(f->weight[w] + i) * load_lanes(seen->row[w], i, lanes);
    return with_silu ? silu(z) : z;
}

/* W and with_silu are constants in most calls. The block and the window are copies, which no store to y can change. */
ALWAYS_INLINE void filter(size_t W, bool with_silu, ConvolutionBlock b, const BlockFilters *f, TokenWindow seen,
                          const real *ahead, real *y)
{
    size_t i = 0;
    for (; i + FWM_LANES <= b.n; i += FWM_LANES) {
        __builtin_prefetch(ahead + i);
        store_lanes(b.streams, y, i, FWM_LANES, filter_lanes(W, with_silu, f, &seen, i, FWM_LANES));
    }
    if (i < b.n)
        store_lanes(false, y, i, b.n - i, filter_lanes(W, with_silu, f, &seen, i, b.n - i));
}

void filter_token(const FwmConvolutionCall *c, const ConvolutionBlock *b, const BlockFilters *f,
                  const TokenWindow *seen, const real *ahead, real *y)
{
    switch (c->W) {
    case 2: c->silu ? filter(2, true, *b, f, *seen, ahead, y) : filter(2, false, *b, f, *seen, ahead, y); break;
    case 3: c->silu ? filter(3, true, *b, f, *seen, ahead, y) : filter(3, false, *b, f, *seen, ahead, y); break;
    case 4: c->silu ? filter(4, true, *b, f, *seen, ahead, y) : filter(4, false, *b, f, *seen, ahead, y); break;
    default: filter(c->W, c->silu, *b, f, *seen, ahead, y);
    }
}

static void filter_sequence(const FwmConvolutionCall *c, const ConvolutionBlock *b, const BlockFilters *f,
                            const ConvolutionSequence *s)
{
    KeptRows kept;
    TokenWindow seen = tokens_seen(c, s, s->from - 1);
    for (ptrdiff_t t = s->from; t < s->to; t++) {
        push_token(&seen, &kept, c->W, b->n, (size_t)t, token_at(c, s, t));
        filter_token(c, b, f, &seen, token_at(c, s, token_ahead(s, t)), (real *)c->y + s->at + (size_t)t * c->D);
    }
}

static void block_task(void *context, size_t index, int thread)
{
    (void)thread;
    const FwmConvolutionCall *c = context;
    const ConvolutionBlock b = block_at(c, index / channel_blocks(c), index % channel_blocks(c));
    BlockFilters f;
    load_filters(c, &b, &f);
    for (size_t i = sequence_of_token(c, b.first); i < c->n_sequences && (size_t)c->offsets[i] < b.last; i++) {
        const ConvolutionSequence s = sequence_at(c, &b, i);
        filter_sequence(c, &b, &f, &s);
    }
    vec_stream_end();
}

/* The final state: the last W - 1 tokens. It may be the initial state's array, since every row is read before it is
 * overwritten, or stays where it is. */
static void state_task(void *context, size_t index, int thread)
{
    (void)thread;
    const FwmConvolutionCall *c = context;
    const ConvolutionBlock b = block_at(c, 0, index % channel_blocks(c));
    const ConvolutionSequence s = sequence_at(c, &b, index / channel_blocks(c));
    real *row = (real *)c->final_state + s.state_at;
    for (size_t w = 1; w < c->W; w++, row += c->D) {
        const real *token = token_at(c, &s, s.length + (ptrdiff_t)w - (ptrdiff_t)c->W);
        if (token != row)
            copy(b.n, token, row);
    }
}

/* Where the final states are the arrays of the initial ones, which tokens read, they are written after all tokens. */
void convolution_forward(const void *call, int threads, void *scratch)
{
    const FwmConvolutionCall *c = call;
    (void)scratch;
    const FwmLoop loops[] = {
        {token_blocks(c) * channel_blocks(c), block_task},
        {c->final_state ? c->n_sequences * channel_blocks(c) : 0, state_task},
    };
    const bool in_place = c->final_state && c->final_state == c->initial_state;
    const int few = fwm_threads_for(numbers_of_x(c), threads);
    fwm_parallel_loops(few, in_place ? 1 : 2, loops, (void *)c);
    if (in_place)
        fwm_parallel_loops(few, 1, loops + 1, (void *)c);
}
