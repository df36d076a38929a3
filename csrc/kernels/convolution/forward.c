/* The causal convolution, forward, for token t of a sequence and each channel:
 *
 *     z_t = bias + sum_w weight_w x_{t - W + 1 + w},   y_t = z_t, or silu(z_t) = z_t / (1 + exp(-z_t))
 *
 * where x_{-1} .. x_{-W + 1} are the initial state, or zeros. The final state is x_{T - W + 1} .. x_{T - 1}.
 *
 * Derived in docs/mathematics/causal_conv1d.md. */
#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"
#include "kernels/convolution/block.h"
#include "kernels/convolution/convolution.h"
#include "runtime/threads.h"

ALWAYS_INLINE void filter(size_t W, size_t n, const BlockFilters *f, const TokenWindow *seen, real *y)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        y[i] = weighted(W, f, seen, i, f->bias[i]);
}

ALWAYS_INLINE void filter_silu(size_t W, size_t n, const BlockFilters *f, const TokenWindow *seen, real *y)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        const real z = weighted(W, f, seen, i, f->bias[i]);
        y[i] = z / (1 + exp_real(-z));
    }
}

static void filter_any(const FwmConvolutionCall *c, size_t n, const BlockFilters *f, const TokenWindow *seen, real *y)
{
    weighted_rows(c->W, n, f, seen, f->bias, y);
    if (!c->silu)
        return;
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        y[i] = y[i] / (1 + exp_real(-y[i]));
}

void filter_token(const FwmConvolutionCall *c, size_t n, const BlockFilters *f, const TokenWindow *seen, real *y)
{
    switch (c->W) {
    case 2: c->silu ? filter_silu(2, n, f, seen, y) : filter(2, n, f, seen, y); break;
    case 3: c->silu ? filter_silu(3, n, f, seen, y) : filter(3, n, f, seen, y); break;
    case 4: c->silu ? filter_silu(4, n, f, seen, y) : filter(4, n, f, seen, y); break;
    default: filter_any(c, n, f, seen, y);
    }
}

static void filter_sequence(const FwmConvolutionCall *c, const ConvolutionBlock *b, const BlockFilters *f,
                            const ConvolutionSequence *s)
{
    for (ptrdiff_t t = s->from; t < s->to; t++) {
        const TokenWindow seen = tokens_seen(c, s, t);
        if (t + 1 < s->to)
            prefetch_row(b, token_at(c, s, t + 1));
        filter_token(c, b->n, f, &seen, (real *)c->y + s->at + (size_t)t * c->D);
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
