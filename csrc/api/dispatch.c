/* Which copy of the kernels runs: decided once, at import. A variant that was not built or that the processor lacks is
 * never chosen; the baseline runs everywhere. */
#include "api/dispatch.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define DECLARE(variant) extern const FwmKernels fwm_kernels_##variant##_f32, fwm_kernels_##variant##_f64;
#if FWM_HAVE_BASELINE
DECLARE(baseline)
#endif
#if FWM_HAVE_AVX2
DECLARE(avx2)
#endif
#if FWM_HAVE_AVX512
DECLARE(avx512)
#endif
#if FWM_HAVE_AVX512_BF16
size_t fwm_rule_forward_scratch_avx512_bf16_f32(const void *call, int threads);
void fwm_rule_forward_avx512_bf16_f32(const void *call, int threads, void *scratch);
size_t fwm_rule_backward_scratch_avx512_bf16_f32(const void *call, int threads);
void fwm_rule_backward_avx512_bf16_f32(const void *call, int threads, void *scratch);

/* AVX-512's kernels, with rules of its own in float32. */
static FwmKernels fwm_kernels_avx512_bf16_f32;
#define fwm_kernels_avx512_bf16_f64 fwm_kernels_avx512_f64
#endif

typedef struct {
    const char *name;
    const FwmKernels *f32, *f64;
    int (*runs_here)(void);
} Variant;

#if FWM_HAVE_BASELINE
static int always(void)
{
    return 1;
}
#endif

#if FWM_HAVE_AVX2
static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

#if FWM_HAVE_AVX512 || FWM_HAVE_AVX512_BF16
static int has_avx512(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl");
}
#endif

#if FWM_HAVE_AVX512_BF16
static int has_avx512_bf16(void)
{
    return has_avx512() && __builtin_cpu_supports("avx512bf16");
}
#endif

#define VARIANT(variant, test) {#variant, &fwm_kernels_##variant##_f32, &fwm_kernels_##variant##_f64, test},

/* From slow to fast. */
static const Variant variants[] = {
#if FWM_HAVE_BASELINE
    VARIANT(baseline, always)
#endif
#if FWM_HAVE_AVX2
        VARIANT(avx2, has_avx2)
#endif
#if FWM_HAVE_AVX512
            VARIANT(avx512, has_avx512)
#endif
#if FWM_HAVE_AVX512_BF16
                VARIANT(avx512_bf16, has_avx512_bf16)
#endif
};
#define N_VARIANTS (sizeof variants / sizeof variants[0])

static const Variant *_Atomic chosen = &variants[0];

static void put_together(void)
{
#if FWM_HAVE_AVX512_BF16
    FwmKernels *k = &fwm_kernels_avx512_bf16_f32;
    *k = fwm_kernels_avx512_f32;
    k->variant = "avx512_bf16";
    k->rule.forward.scratch = fwm_rule_forward_scratch_avx512_bf16_f32;
    k->rule.forward.run = fwm_rule_forward_avx512_bf16_f32;
    k->rule.backward.scratch = fwm_rule_backward_scratch_avx512_bf16_f32;
    k->rule.backward.run = fwm_rule_backward_avx512_bf16_f32;
#endif
}

static void list_usable(char *out, size_t size)
{
    out[0] = 0;
    for (size_t i = 0; fwm_usable_variant(i); i++) {
        if (i)
            strncat(out, ", ", size - strlen(out) - 1);
        strncat(out, fwm_usable_variant(i), size - strlen(out) - 1);
    }
}

const char *fwm_choose_variant(const char *name, char *message, size_t message_size)
{
    const Variant *found = NULL;
    put_together();
    for (size_t i = 0; i < N_VARIANTS; i++)
        if (variants[i].runs_here() && (!name || strcmp(name, variants[i].name) == 0))
            found = &variants[i];
    if (!found) {
        char usable[64];
        list_usable(usable, sizeof usable);
        snprintf(message, message_size,
                 "FWM_PY_ISA: got '%.40s', expected one that this build has and this processor runs: %s",
                 name ? name : "", usable);
        return NULL;
    }
    chosen = found;
    return found->name;
}

const FwmKernels *fwm_kernels_f32(void)
{
    return atomic_load_explicit(&chosen, memory_order_relaxed)->f32;
}

const FwmKernels *fwm_kernels_f64(void)
{
    return atomic_load_explicit(&chosen, memory_order_relaxed)->f64;
}

const char *fwm_usable_variant(size_t i)
{
    for (size_t v = 0; v < N_VARIANTS; v++)
        if (variants[v].runs_here() && i-- == 0)
            return variants[v].name;
    return NULL;
}
