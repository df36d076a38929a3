/* Sizes that the kernels and their callers agree on. */
#ifndef FWM_API_SIZES_H
#define FWM_API_SIZES_H

#include <stddef.h>

/* Rows of every internal matrix are padded with zeros to a multiple of this many numbers: whole vectors on every
 * instruction set, and no loop over features has a remainder. */
#define FWM_PAD 16

/* Tokens of a sequence are handled in tiles, so that a tile's gradients stay in the first-level cache on their way from
 * the read-out to the feature map. */
#define FWM_TILE 16

static inline size_t fwm_padded(size_t n)
{
    return (n + FWM_PAD - 1) / FWM_PAD * FWM_PAD;
}

/* Tiles of this size that n things make; the last may be smaller. */
static inline size_t fwm_tiles(size_t n, size_t tile)
{
    return (n + tile - 1) / tile;
}

static inline size_t fwm_min(size_t a, size_t b)
{
    return a < b ? a : b;
}

#endif
