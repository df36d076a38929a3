/* The draws of numpy.random.RandomState, the legacy stream of NumPy, on top of MT19937.
 *
 * FROZEN: the same seed must give the same draws for ever, because the published training data consist of them.
 * tests/operations/test_random.py holds recorded draws and compares with the installed NumPy. */
#ifndef FWM_RANDOM_NUMPY_LEGACY_H
#define FWM_RANDOM_NUMPY_LEGACY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "random/mt19937.h"

/* randint(max + 1): uniform on 0..max, both inclusive, by masked rejection. max = 0 draws nothing. */
uint32_t fwm_numpy_bounded(FwmMT19937 *g, uint32_t max);

/* out (n): permutation(n), n < 2^31. */
void fwm_numpy_permutation(FwmMT19937 *g, uint32_t n, int32_t *out);

/* out (size): choice(n, size, replace), 1 <= n < 2^31. Without replacement size <= n. scratch (n) is used without
 * replacement if size < n; otherwise it may be NULL. */
void fwm_numpy_choice(FwmMT19937 *g, uint32_t n, size_t size, bool replace, int32_t *out, int32_t *scratch);

#endif
