#include "random/omega_draws.h"

void fwm_next_normal_block(FwmBlockSource *source, size_t n, float *out)
{
    if (source->kind == FWM_PHILOX)
        fwm_philox_normal_block(source->philox.seed, source->philox.next_block++, n, out);
    else
        fwm_torch_normal(&source->torch_cpu, n, out);
}

void fwm_skip_normal_blocks(FwmBlockSource *source, size_t n, size_t blocks)
{
    if (source->kind == FWM_PHILOX) {
        source->philox.next_block += (uint32_t)blocks;
        return;
    }
    for (size_t i = 0; i < blocks; i++)
        fwm_torch_skip_normal(&source->torch_cpu, n);
}
