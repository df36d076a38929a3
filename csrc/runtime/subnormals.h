/* Subnormal numbers, where they decide nothing.
 *
 * A processor takes a hundred cycles and more for an operation on numbers below the smallest normal one. A loop whose
 * result they cannot change may have them flushed to 0, for as long as it runs and in its own thread; everything else
 * here computes with them. */
#ifndef FWM_RUNTIME_SUBNORMALS_H
#define FWM_RUNTIME_SUBNORMALS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __SSE2__
#include <xmmintrin.h>
#endif

/* How a thread treats them: the register that says so, and nothing on processors not named here. */
typedef uint64_t FwmSubnormals;

#if defined(__SSE2__)

#define FWM_FLUSH 0x8040u /* results to zero; operands as zeros */

static inline FwmSubnormals fwm_float_mode(void)
{
    return _mm_getcsr();
}

static inline void fwm_restore_subnormals(FwmSubnormals mode)
{
    _mm_setcsr((unsigned)mode);
}

#elif defined(__aarch64__)

#define FWM_FLUSH (UINT64_C(1) << 24)

static inline FwmSubnormals fwm_float_mode(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}

static inline void fwm_restore_subnormals(FwmSubnormals mode)
{
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
}

#else

#define FWM_FLUSH 0

static inline FwmSubnormals fwm_float_mode(void)
{
    return 0;
}

static inline void fwm_restore_subnormals(FwmSubnormals mode)
{
    (void)mode;
}

#endif

/* Flushes them from here on, if `flush`; returns the mode before, for fwm_restore_subnormals. */
static inline FwmSubnormals fwm_subnormals(bool flush)
{
    const FwmSubnormals before = fwm_float_mode();
    if (flush)
        fwm_restore_subnormals(before | FWM_FLUSH);
    return before;
}

#endif
