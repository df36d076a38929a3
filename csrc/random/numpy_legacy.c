#include "random/numpy_legacy.h"

#include <string.h>

/* The smallest 2^k - 1 >= max. */
static uint32_t mask_of(uint32_t max)
{
    uint32_t mask = max;
    for (int shift = 1; shift < 32; shift *= 2)
        mask |= mask >> shift;
    return mask;
}

uint32_t fwm_numpy_bounded(FwmMT19937 *g, uint32_t max)
{
    if (max == 0)
        return 0;
    uint32_t mask = mask_of(max), draw;
    do
        draw = fwm_mt19937_next(g) & mask;
    while (draw > max);
    return draw;
}

/* Up to half of all draws are rejected at random, and a branch on that is mispredicted as often. So both loops below
 * store every draw without a branch and advance only if it was accepted: `count += draw <= max`. */

/* out (size): independent draws on 0..max. */
static void bounded_fill(FwmMT19937 *g, uint32_t max, size_t size, int32_t *out)
{
    if (max == 0) {
        memset(out, 0, size * sizeof *out);
        return;
    }
    uint32_t mask = mask_of(max);
    for (size_t count = 0; count < size;) {
        if (g->position == FWM_MT19937_WORDS)
            fwm_mt19937_refill(g);
        int position = g->position;
        while (count < size && position < FWM_MT19937_WORDS) {
            uint32_t draw = g->tempered[position++] & mask;
            out[count] = (int32_t)draw;
            count += draw <= max;
        }
        g->position = position;
    }
}

/* The shuffle of Fisher and Yates, from the end: for i = n - 1 .. 1 swap elements i and bounded(i). For each batch of
 * generator words the accepted draws are collected first and the swaps are done afterwards, because a swap has to wait
 * for the one before it. The mask changes only where i falls below a power of two. */
void fwm_numpy_permutation(FwmMT19937 *g, uint32_t n, int32_t *out)
{
    uint32_t accepted[FWM_MT19937_WORDS];
    for (uint32_t i = 0; i < n; i++)
        out[i] = (int32_t)i;
    uint32_t top = n > 0 ? n - 1 : 0; /* the element to be swapped next */
    while (top > 0) {
        if (g->position == FWM_MT19937_WORDS)
            fwm_mt19937_refill(g);
        uint32_t mask = mask_of(top), last_of_mask = mask >> 1, i = top;
        int position = g->position;
        while (i > last_of_mask && position < FWM_MT19937_WORDS) {
            uint32_t draw = g->tempered[position++] & mask;
            accepted[top - i] = draw;
            i = i - 1 + (draw > i);
        }
        g->position = position;
        for (const uint32_t *j = accepted; top > i; top--, j++) {
            int32_t moved = out[top];
            out[top] = out[*j];
            out[*j] = moved;
        }
    }
}

void fwm_numpy_choice(FwmMT19937 *g, uint32_t n, size_t size, bool replace, int32_t *out, int32_t *scratch)
{
    if (replace) {
        bounded_fill(g, n - 1, size, out);
    } else if (size == n) {
        fwm_numpy_permutation(g, n, out);
    } else {
        fwm_numpy_permutation(g, n, scratch);
        memcpy(out, scratch, size * sizeof *out);
    }
}
