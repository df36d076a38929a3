/* The causal convolution, backward. Forward, for token t of a sequence and each channel:
 *
 *     z_t = bias + sum_w weight_w x_{t - W + 1 + w},   y_t = z_t, or silu(z_t) = z_t s_t with s_t = 1 / (1 + exp(-z_t))
 *
 * Nothing is saved; z is recomputed. With s' = s (1 - s):
 *
 *     dz_t = dy_t, or dy_t (s_t + z_t s'_t) = dy_t s_t (1 + z_t (1 - s_t))
 *
 * x_t is seen by tokens t .. t + W - 1, by the last of them through weight_0, so
 *
 *     dx_t = sum_w weight_w dz_{t + W - 1 - w},   dweight_w = sum_t dz_t x_{t - W + 1 + w},   dbias = sum_t dz_t
 *
 * where dz is 0 outside the sequence. For t < 0, dx_t is the gradient of the initial state; where token t is part of
 * the final state, the gradient of that is added to dx_t. A block goes through its tokens from first to last and keeps
 * W rows of dz: with dz_u, dx_{u - W + 1} is complete. dz of the W - 1 tokens behind the block is recomputed. Each
 * block has its own sums over tokens, and these are added in the order of the blocks, so that the bits do not depend on
 * the number of threads.
 *
 * Derived in docs/mathematics/causal_conv1d.md. */
#include <string.h>

#include "kernels/convolution/block.h"
#include "kernels/convolution/convolution.h"
#include "kernels/convolution/silu.h"
#include "runtime/threads.h"

typedef struct {
    const FwmConvolutionCall *c;
    real *sums; /* (blocks of tokens, W + 1, D): dweight_w, then dbias */
} ConvolutionBackward;

/* The same sums of one block, rows padded to whole vectors. */
typedef struct {
    real row[FWM_MOST_TAPS + 1][BLOCK_CHANNELS];
} BlockSums;

/* What is done with one token u, from the rows of tokens u - W + 1 .. u. */
typedef struct {
    TokenWindow seen, dz;         /* x; and dz, of which the last row is written */
    const real *ahead, *dy_ahead; /* rows to prefetch */
    const real *dy;               /* NULL: there is no such token, and dz is 0 already */
    BlockSums *sums;              /* NULL: the token is not the block's */
    real *dz_row;                 /* the last row of dz */
    const real *dstate;           /* what is added to dx of token u - W + 1 */
    real *dx;                     /* NULL: that token is not the block's */
} BackwardStep;

ALWAYS_INLINE void step_lanes(size_t W, bool with_silu, bool streams, const BlockFilters *f, const BackwardStep *s,
                              size_t i, size_t lanes)
{
    vec x[FWM_MOST_TAPS], last = {0};
    if (s->dy) {
        __builtin_prefetch(s->ahead + i);
        __builtin_prefetch(s->dy_ahead + i);
        vec z = vec_load(f->bias + i);
        for (size_t w = 0; w < W; w++) {
            x[w] = load_lanes(s->seen.row[w], i, lanes);
            z += vec_load(f->weight[w] + i) * x[w];
        }
        last = load_lanes(s->dy, i, lanes);
        if (with_silu)
            last *= silu_slope(z);
        vec_store(s->dz_row + i, last);
        if (s->sums) {
            for (size_t w = 0; w < W; w++)
                vec_store(s->sums->row[w] + i, vec_load(s->sums->row[w] + i) + last * x[w]);
            vec_store(s->sums->row[W] + i, vec_load(s->sums->row[W] + i) + last);
        }
    }
    if (s->dx) {
        vec dx = load_lanes(s->dstate, i, lanes) + vec_load(f->weight[0] + i) * last;
        for (size_t w = 1; w < W; w++)
            dx += vec_load(f->weight[w] + i) * vec_load(s->dz.row[W - 1 - w] + i);
        store_lanes(streams, s->dx, i, lanes, dx);
    }
}

/* W and with_silu are constants in most calls. The block and the step are copies, which no store can change. */
ALWAYS_INLINE void step(size_t W, bool with_silu, ConvolutionBlock b, const BlockFilters *f, BackwardStep s)
{
    size_t i = 0;
    for (; i + FWM_LANES <= b.n; i += FWM_LANES)
        step_lanes(W, with_silu, b.streams, f, &s, i, FWM_LANES);
    if (i < b.n)
        step_lanes(W, with_silu, false, f, &s, i, b.n - i);
}

static void take_step(const FwmConvolutionCall *c, const ConvolutionBlock *b, const BlockFilters *f,
                      const BackwardStep *s)
{
    switch (c->W) {
    case 2: c->silu ? step(2, true, *b, f, *s) : step(2, false, *b, f, *s); break;
    case 3: c->silu ? step(3, true, *b, f, *s) : step(3, false, *b, f, *s); break;
    case 4: c->silu ? step(4, true, *b, f, *s) : step(4, false, *b, f, *s); break;
    default: step(c->W, c->silu, *b, f, *s);
    }
}

/* Where dx of token t goes, or the initial state's gradient if t < 0, and what is added to it: the gradient of its row
 * in the final state, if it is in that. */
static void set_output(const FwmConvolutionCall *c, const ConvolutionSequence *s, ptrdiff_t t, BackwardStep *step)
{
    /* the token's row in the initial and in the final state, if it is in them */
    const ptrdiff_t in_initial = t + (ptrdiff_t)c->W - 1, in_final = in_initial - s->length;
    const real *dfinal = c->dfinal_state;
    step->dstate = dfinal && in_final >= 0 ? dfinal + s->state_at + (size_t)in_final * c->D : zero_row;
    step->dx = t >= 0 ? (real *)c->dx + s->at + (size_t)t * c->D
                      : (real *)c->dinitial_state + s->state_at + (size_t)in_initial * c->D;
}

/* dx of tokens from .. to - 1 of a sequence; sums is NULL for those of the initial state. */
static void backward_tokens(const FwmConvolutionCall *c, const ConvolutionBlock *b, const BlockFilters *f,
                            const ConvolutionSequence *s, ptrdiff_t from, ptrdiff_t to, BlockSums *sums)
{
    KeptRows kept, rows;
    const ptrdiff_t before = (ptrdiff_t)c->W - 1, first = from > 0 ? from : 0;
    const real *dy = (const real *)c->dy + s->at;
    BackwardStep step = {.seen = tokens_seen(c, s, first - 1)};
    for (size_t w = 0; w < c->W; w++)
        step.dz.row[w] = zero_row;
    for (ptrdiff_t u = first; u < to + before; u++) {
        const bool there = u < s->length;
        if (there) {
            step.ahead = token_at(c, s, token_ahead(s, u));
            step.dy_ahead = dy + (size_t)token_ahead(s, u) * c->D;
            push_token(&step.seen, &kept, c->W, b->n, (size_t)u, token_at(c, s, u));
        }
        step.dy = there ? dy + (size_t)u * c->D : NULL;
        step.sums = u < to ? sums : NULL;
        step.dz_row = rows.row[(size_t)u % c->W];
        push_row(&step.dz, c->W, there ? step.dz_row : zero_row);
        if (u - before >= from)
            set_output(c, s, u - before, &step);
        take_step(c, b, f, &step);
    }
}

static void block_task(void *context, size_t index, int thread)
{
    (void)thread;
    const ConvolutionBackward *w = context;
    const FwmConvolutionCall *c = w->c;
    const size_t tokens = index / channel_blocks(c);
    const ConvolutionBlock b = block_at(c, tokens, index % channel_blocks(c));
    BlockFilters f;
    BlockSums block_sums;
    load_filters(c, &b, &f);
    memset(&block_sums, 0, (c->W + 1) * sizeof block_sums.row[0]);
    for (size_t i = sequence_of_token(c, b.first); i < c->n_sequences && (size_t)c->offsets[i] < b.last; i++) {
        const ConvolutionSequence s = sequence_at(c, &b, i);
        if (s.from < s.to)
            backward_tokens(c, &b, &f, &s, s.from, s.to, &block_sums);
    }
    real *sums = w->sums + tokens * (c->W + 1) * c->D + b.channel;
    for (size_t i = 0; i <= c->W; i++)
        copy(b.n, block_sums.row[i], sums + i * c->D);
    vec_stream_end();
}

static void state_task(void *context, size_t index, int thread)
{
    (void)thread;
    const FwmConvolutionCall *c = ((const ConvolutionBackward *)context)->c;
    const ConvolutionBlock b = block_at(c, 0, index % channel_blocks(c));
    const ConvolutionSequence s = sequence_at(c, &b, index / channel_blocks(c));
    BlockFilters f;
    load_filters(c, &b, &f);
    backward_tokens(c, &b, &f, &s, 1 - (ptrdiff_t)c->W, 0, NULL);
}

/* total = the sum over all blocks of tokens of row w of `sums`. */
static void add_blocks(const ConvolutionBackward *a, const ConvolutionBlock *b, size_t w, real *total)
{
    const FwmConvolutionCall *c = a->c;
    const size_t blocks = token_blocks(c);
    const real *sums = a->sums + w * c->D + b->channel;
    memset(total, 0, b->n * sizeof(real));
    for (size_t k = 0; k < blocks; k++, sums += (c->W + 1) * c->D)
        for (size_t i = 0; i < b->n; i++)
            total[i] += sums[i];
}

static void sum_task(void *context, size_t index, int thread)
{
    (void)thread;
    const ConvolutionBackward *a = context;
    const FwmConvolutionCall *c = a->c;
    const ConvolutionBlock b = block_at(c, 0, index);
    real total[BLOCK_CHANNELS], *dweight = (real *)c->dweight + b.channel * c->W;
    for (size_t w = 0; w < c->W; w++) {
        add_blocks(a, &b, w, total);
        for (size_t i = 0; i < b.n; i++)
            dweight[i * c->W + w] = total[i];
    }
    if (c->dbias)
        add_blocks(a, &b, c->W, (real *)c->dbias + b.channel);
}

size_t convolution_backward_scratch(const void *call, int threads)
{
    const FwmConvolutionCall *c = call;
    (void)threads;
    return token_blocks(c) * (c->W + 1) * c->D * sizeof(real);
}

void convolution_backward(const void *call, int threads, void *scratch)
{
    const FwmConvolutionCall *c = call;
    ConvolutionBackward b = {.c = c, .sums = scratch};
    const FwmLoop loops[] = {
        {token_blocks(c) * channel_blocks(c), block_task},
        {c->dinitial_state ? c->n_sequences * channel_blocks(c) : 0, state_task},
    };
    const int few = fwm_threads_for(numbers_of_x(c), threads);
    fwm_parallel_loops(few, 2, loops, &b);
    fwm_parallel_for(few, channel_blocks(c), sum_task, &b);
}
