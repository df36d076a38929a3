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
 * the final state, the gradient of that is added to dx_t. A block goes through its tokens from last to first and keeps
 * W rows of dz; dz of the W - 1 tokens behind the block is recomputed. Each block writes its own sums over tokens, and
 * these are added in the order of the blocks, so that the bits do not depend on the number of threads.
 *
 * Derived in docs/mathematics/causal_conv1d.md. */
#include <string.h>

#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"
#include "kernels/convolution/block.h"
#include "kernels/convolution/convolution.h"
#include "runtime/threads.h"

typedef struct {
    const FwmConvolutionCall *c;
    real *sums; /* (blocks of tokens, W + 1, D): dweight_w, then dbias */
} ConvolutionBackward;

ALWAYS_INLINE void silu_backward(size_t W, size_t n, const BlockFilters *f, const TokenWindow *seen, const real *dy,
                                 real *dz)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        const real z = weighted(W, f, seen, i, f->bias[i]), s = logistic(z);
        dz[i] = dy[i] * (s * (1 + z * (1 - s)));
    }
}

static void silu_backward_any(size_t W, size_t n, const BlockFilters *f, const TokenWindow *seen, const real *dy,
                              real *dz)
{
    real z[BLOCK_CHANNELS];
    weighted_rows(W, n, f, seen, f->bias, z);
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        const real s = logistic(z[i]);
        dz[i] = dy[i] * (s * (1 + z[i] * (1 - s)));
    }
}

ALWAYS_INLINE void weighted_row(size_t W, size_t n, const BlockFilters *f, const TokenWindow *later, const real *dstate,
                                real *dx)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        dx[i] = weighted(W, f, later, i, dstate[i]);
}

ALWAYS_INLINE void add_products(size_t W, size_t n, const real *dz, const TokenWindow *seen, real *sums, size_t ld)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        for (size_t w = 0; w < W; w++)
            sums[w * ld + i] += dz[i] * seen->row[w][i];
        sums[W * ld + i] += dz[i];
    }
}

static void add_products_any(size_t W, size_t n, const real *dz, const TokenWindow *seen, real *sums, size_t ld)
{
    for (size_t w = 0; w < W; w++) {
        const real *row = seen->row[w];
#pragma omp simd
        for (size_t i = 0; i < n; i++)
            sums[w * ld + i] += dz[i] * row[i];
    }
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        sums[W * ld + i] += dz[i];
}

/* dz of a token; written to `row` if it is not the token's dy itself. */
static const real *dz_of(const FwmConvolutionCall *c, const ConvolutionBlock *b, const BlockFilters *f,
                         const ConvolutionSequence *s, ptrdiff_t t, real *row)
{
    if (t < 0 || t >= s->length)
        return zero_row;
    const real *dy = (const real *)c->dy + s->at + (size_t)t * c->D;
    if (!c->silu)
        return dy;
    const TokenWindow seen = tokens_seen(c, s, t);
    switch (c->W) {
    case 2: silu_backward(2, b->n, f, &seen, dy, row); break;
    case 3: silu_backward(3, b->n, f, &seen, dy, row); break;
    case 4: silu_backward(4, b->n, f, &seen, dy, row); break;
    default: silu_backward_any(c->W, b->n, f, &seen, dy, row);
    }
    return row;
}

/* dx of token t, or the initial state's gradient if t < 0. later: dz of tokens t + W - 1 .. t. */
static void write_dx(const FwmConvolutionCall *c, const ConvolutionBlock *b, const BlockFilters *f,
                     const ConvolutionSequence *s, ptrdiff_t t, const TokenWindow *later)
{
    /* the token's row in the initial and in the final state, if it is in them */
    const ptrdiff_t in_initial = t + (ptrdiff_t)c->W - 1, in_final = in_initial - s->length;
    const real *dfinal = c->dfinal_state;
    const real *dstate = dfinal && in_final >= 0 ? dfinal + s->state_at + (size_t)in_final * c->D : zero_row;
    real *dx = t >= 0 ? (real *)c->dx + s->at + (size_t)t * c->D
                      : (real *)c->dinitial_state + s->state_at + (size_t)in_initial * c->D;
    switch (c->W) {
    case 2: weighted_row(2, b->n, f, later, dstate, dx); break;
    case 3: weighted_row(3, b->n, f, later, dstate, dx); break;
    case 4: weighted_row(4, b->n, f, later, dstate, dx); break;
    default: weighted_rows(c->W, b->n, f, later, dstate, dx);
    }
}

/* Accumulates token t into dweight and dbias. sums starts at the block's first channel and has rows of D. */
static void add_token(const FwmConvolutionCall *c, const ConvolutionBlock *b, const ConvolutionSequence *s, ptrdiff_t t,
                      const real *dz, real *sums)
{
    const TokenWindow seen = tokens_seen(c, s, t);
    switch (c->W) {
    case 2: add_products(2, b->n, dz, &seen, sums, c->D); break;
    case 3: add_products(3, b->n, dz, &seen, sums, c->D); break;
    case 4: add_products(4, b->n, dz, &seen, sums, c->D); break;
    default: add_products_any(c->W, b->n, dz, &seen, sums, c->D);
    }
}

/* Prefetches the rows that token t reads and token t + 1 does not. */
static void prefetch_token(const FwmConvolutionCall *c, const ConvolutionBlock *b, const ConvolutionSequence *s,
                           ptrdiff_t t)
{
    if (t < 0 || t >= s->length)
        return;
    prefetch_row(b, (const real *)c->dy + s->at + (size_t)t * c->D);
    prefetch_row(b, token_at(c, s, t + 1 - (ptrdiff_t)c->W));
}

/* The backward of tokens from .. to - 1 of a sequence, last to first; sums is NULL for those of the initial state. */
static void backward_tokens(const FwmConvolutionCall *c, const ConvolutionBlock *b, const BlockFilters *f,
                            const ConvolutionSequence *s, ptrdiff_t from, ptrdiff_t to, real *sums)
{
    real rows[FWM_MOST_TAPS][BLOCK_CHANNELS];
    TokenWindow later = {{NULL}};
    const size_t last = c->W - 1;
    for (ptrdiff_t t = to + (ptrdiff_t)last - 1; t >= from; t--) {
        if (t > from)
            prefetch_token(c, b, s, t - 1);
        memmove(later.row, later.row + 1, last * sizeof later.row[0]);
        later.row[last] = dz_of(c, b, f, s, t, rows[(size_t)(t - from) % c->W]);
        if (t >= to)
            continue;
        write_dx(c, b, f, s, t, &later);
        if (sums)
            add_token(c, b, s, t, later.row[last], sums);
    }
}

static void block_task(void *context, size_t index, int thread)
{
    (void)thread;
    const ConvolutionBackward *w = context;
    const FwmConvolutionCall *c = w->c;
    const size_t tokens = index / channel_blocks(c);
    const ConvolutionBlock b = block_at(c, tokens, index % channel_blocks(c));
    real *sums = w->sums + tokens * (c->W + 1) * c->D + b.channel;
    BlockFilters f;
    load_filters(c, &b, &f);
    for (size_t i = 0; i <= c->W; i++)
        memset(sums + i * c->D, 0, b.n * sizeof(real));
    for (size_t i = sequence_of_token(c, b.first); i < c->n_sequences && (size_t)c->offsets[i] < b.last; i++) {
        const ConvolutionSequence s = sequence_at(c, &b, i);
        if (s.from < s.to)
            backward_tokens(c, &b, &f, &s, s.from, s.to, sums);
    }
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
