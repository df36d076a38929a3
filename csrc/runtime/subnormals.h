/* Flushing of subnormal numbers.
 *
 * An operation on subnormal numbers (those below the smallest normal one) takes a processor a hundred cycles or more. A
 * loop whose result does not depend on them may flush them to 0, while it runs and in its own threads only; everything
 * else in this package computes with them. */
#ifndef FWM_RUNTIME_SUBNORMALS_H
#define FWM_RUNTIME_SUBNORMALS_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __SSE2__
#include <xmmintrin.h>
#endif

/* A copy of the register that says how a thread treats subnormals; unused on processors not named here. */
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

/* If `flush`, flushes subnormals in this thread from now on. Returns the mode before, for fwm_restore_subnormals. */
static inline FwmSubnormals fwm_subnormals(bool flush)
{
    const FwmSubnormals before = fwm_float_mode();
    if (flush)
        fwm_restore_subnormals(before | FWM_FLUSH);
    return before;
}

#endif
