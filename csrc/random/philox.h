/* Blocks of standard normals as torch draws them on CUDA: Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011) and a
 * Box-Muller transform in float32, of which only the sine is used.
 *
 * FROZEN: the same seed must give the same blocks for ever, because the published FAVOR+ runs, made on a GPU, depend on
 * them. tests/operations/test_random.py holds known answers of Philox and recorded normals. */
#ifndef FWM_RANDOM_PHILOX_H
#define FWM_RANDOM_PHILOX_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint64_t seed;
    uint32_t next_block; /* the number of blocks drawn since seeding */
} FwmPhilox;

/* out: the four output words of Philox4x32-10 for one counter and one key. */
void fwm_philox4x32_10(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4]);

/* out (n): block number `block` since seeding; n < 2^32. Stateless: element i depends on (seed, block, i) alone. */
void fwm_philox_normal_block(uint64_t seed, uint32_t block, size_t n, float *out);

#endif
