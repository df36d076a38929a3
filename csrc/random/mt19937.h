/* MT19937, the 32-bit Mersenne Twister of Matsumoto and Nishimura (1998), seeded by init_genrand.
 *
 * numpy.random.RandomState(seed) and torch.manual_seed(seed) both use this stream of 32-bit words; numpy_legacy.h and
 * torch_cpu.h turn it into their draws.
 *
 * FROZEN: the stream of a seed must never change, because published figures depend on it.
 * tests/operations/test_random.py holds recorded words. */
#ifndef FWM_RANDOM_MT19937_H
#define FWM_RANDOM_MT19937_H

#include <stdint.h>

#define FWM_MT19937_WORDS 624

typedef struct {
    uint32_t state[FWM_MT19937_WORDS];
    uint32_t tempered[FWM_MT19937_WORDS]; /* the output words of `state`, all computed at once */
    int position;                         /* of the next word in `tempered`; 624: all are used up */
} FwmMT19937;

void fwm_mt19937_seed(FwmMT19937 *g, uint32_t seed);

/* Computes `tempered` from `state`; to be called after the state has been set. */
void fwm_mt19937_temper(FwmMT19937 *g);

/* Computes the next 624 words and sets position = 0. For callers that read g->tempered directly. */
void fwm_mt19937_refill(FwmMT19937 *g);

static inline uint32_t fwm_mt19937_next(FwmMT19937 *g)
{
    if (g->position == FWM_MT19937_WORDS)
        fwm_mt19937_refill(g);
    return g->tempered[g->position++];
}

/* Leaves the generator as n calls of fwm_mt19937_next would. */
void fwm_mt19937_skip(FwmMT19937 *g, uint64_t n);

#endif
