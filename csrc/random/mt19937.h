/* MT19937, the 32-bit Mersenne Twister of Matsumoto and Nishimura (1998), seeded by init_genrand.
 *
 * numpy.random.RandomState(seed) and torch.manual_seed(seed) give this same stream of 32-bit words; see
 * numpy_legacy.h and torch_cpu.h for what they make of it.
 *
 * FROZEN: the stream of a seed must never change; published figures hang on it. tests/test_random.py holds
 * recorded words. */
#ifndef FWM_RANDOM_MT19937_H
#define FWM_RANDOM_MT19937_H

#include <stdint.h>

#define FWM_MT19937_WORDS 624

typedef struct {
    uint32_t state[FWM_MT19937_WORDS];
    uint32_t tempered[FWM_MT19937_WORDS]; /* the words that the state gives, made all at once */
    int position;                         /* of the next word in `tempered`; 624: all are used */
} FwmMT19937;

void fwm_mt19937_seed(FwmMT19937 *g, uint32_t seed);

/* Makes `tempered` of `state`, when the state has been set. */
void fwm_mt19937_temper(FwmMT19937 *g);

/* The next 624 words; position = 0. For callers that read g->tempered themselves. */
void fwm_mt19937_refill(FwmMT19937 *g);

static inline uint32_t fwm_mt19937_next(FwmMT19937 *g)
{
    if (g->position == FWM_MT19937_WORDS)
        fwm_mt19937_refill(g);
    return g->tempered[g->position++];
}

/* Leave the generator as n calls of fwm_mt19937_next would. */
void fwm_mt19937_skip(FwmMT19937 *g, uint64_t n);

#endif
