/* Sequences whose tokens stand one behind the other: where each begins. Include after Python.h and NumPy's
 * arrayobject.h. Functions that return -1 have set an exception. */
#ifndef FWM_PYTHON_SEQUENCES_H
#define FWM_PYTHON_SEQUENCES_H

#include <stdint.h>

#include "python/numpy_api.h"

#define FEW_OFFSETS 33 /* of so many no memory is asked for */

/* All zeros before it is read; released after. */
typedef struct {
    npy_intp n;
    int64_t few[FEW_OFFSETS],
        *offsets; /* n + 1; a copy: nobody changes it after it was checked. NULL until it is needed */
} FwmSequences;

/* B rows of T tokens: the packed sequences of cu_seqlens, of any integer type; or, for None, the rows, whose offsets
 * are not made. */
int fwm_read_sequences(FwmSequences *s, PyObject *cu_seqlens, npy_intp B, npy_intp T);

/* Makes the offsets of n rows of T tokens, unless they were read. */
int fwm_make_offsets(FwmSequences *s, npy_intp T);

void fwm_release_sequences(FwmSequences *s);

#endif
