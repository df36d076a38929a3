#include "random/mt19937.h"

enum { N = FWM_MT19937_WORDS, M = 397 };

void fwm_mt19937_seed(FwmMT19937 *g, uint32_t seed)
{
    g->state[0] = seed;
    for (uint32_t i = 1; i < N; i++)
        g->state[i] = 1812433253u * (g->state[i - 1] ^ (g->state[i - 1] >> 30)) + i;
    g->position = N;
}

/* One step of the recurrence: the word N places after `word`, from `word`, its successor and the word M after it. */
static inline uint32_t twisted(uint32_t word, uint32_t successor, uint32_t ahead)
{
    uint32_t mixed = (word & 0x80000000u) | (successor & 0x7fffffffu);
    return ahead ^ (mixed >> 1) ^ (-(successor & 1u) & 0x9908b0dfu);
}

/* In place, in order. No dependence carried by a loop is nearer than N - M = 227 words, so the compiler vectorises all
 * of them. */
static void twist(FwmMT19937 *g)
{
    uint32_t *state = g->state;
    for (int i = 0; i < N - M; i++)
        state[i] = twisted(state[i], state[i + 1], state[i + M]);
    for (int i = N - M; i < N - 1; i++)
        state[i] = twisted(state[i], state[i + 1], state[i - (N - M)]);
    state[N - 1] = twisted(state[N - 1], state[0], state[M - 1]);
}

void fwm_mt19937_temper(FwmMT19937 *g)
{
    for (int i = 0; i < N; i++) {
        uint32_t y = g->state[i];
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c5680u;
        y ^= (y << 15) & 0xefc60000u;
        g->tempered[i] = y ^ (y >> 18);
    }
}

void fwm_mt19937_refill(FwmMT19937 *g)
{
    twist(g);
    fwm_mt19937_temper(g);
    g->position = 0;
}

void fwm_mt19937_skip(FwmMT19937 *g, uint64_t n)
{
    uint64_t left = (uint64_t)(N - g->position);
    if (n <= left) {
        g->position += (int)n;
        return;
    }
    for (n -= left; n > N; n -= N)
        twist(g);
    fwm_mt19937_refill(g);
    g->position = (int)n;
}
