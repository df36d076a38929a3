/* The draws of torch's CPU generator (torch.manual_seed(seed), then Tensor.uniform_ and Tensor.normal_, float32) on top
 * of MT19937, equal to the bit to those of torch's AVX2 path.
 *
 * FROZEN: the same seed must give the same draws for ever, because the published initial parameters consist of them.
 * tests/operations/test_random.py holds recorded draws and, if torch is installed, compares
 *
 *     torch.manual_seed(1); torch.randn(1000)      with      MT19937(1).normal(1000) */
#ifndef FWM_RANDOM_TORCH_CPU_H
#define FWM_RANDOM_TORCH_CPU_H

#include <stdbool.h>
#include <stddef.h>

#include "random/mt19937.h"

typedef struct {
    FwmMT19937 bits;
    double spare; /* the sine left over by a draw of fewer than 16 normals, used by the next such draw */
    bool has_spare;
} FwmTorchCpu;

void fwm_torch_seed(FwmTorchCpu *g, uint32_t seed);

/* out (n): uniform on [low, high). */
void fwm_torch_uniform(FwmTorchCpu *g, size_t n, float low, float high, float *out);

/* out (n): standard normal. The n numbers are not the first n of a larger draw. */
void fwm_torch_normal(FwmTorchCpu *g, size_t n, float *out);

/* Leave the generator as the draw of n numbers would. */
void fwm_torch_skip_uniform(FwmTorchCpu *g, size_t n);
void fwm_torch_skip_normal(FwmTorchCpu *g, size_t n);

#endif
