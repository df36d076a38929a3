/* Arguments of the general memories, read into the struct that the kernels take. Include after Python.h and NumPy's
 * arrayobject.h. Functions that return -1 have set an exception that begins with the argument's name. */
#ifndef FWM_PYTHON_MEMORY_ARGS_H
#define FWM_PYTHON_MEMORY_ARGS_H

#include "api/kernels.h"
#include "python/sequences.h"

/* The arrays of a call. In the backward, those up to the sum have gradients, in the same order. */
typedef enum {
    IN_Q,
    IN_K,
    IN_V,
    IN_G,
    IN_BETA,
    IN_B,
    IN_W,
    IN_STATE,
    IN_SUM,
    IN_DO,
    IN_DSTATE,
    IN_DSUM,
    N_INPUTS
} FwmMemoryInput;
#define N_GRADIENTS (IN_SUM + 1)

/* What forward and backward have in common, from q on; the order of the arguments in Python. */
typedef enum {
    ARG_Q,
    ARG_K,
    ARG_V,
    ARG_G,
    ARG_BETA,
    ARG_B,
    ARG_W,
    ARG_INITIAL_STATE,
    ARG_SCALE,
    ARG_QK_NORM,
    ARG_NORMALIZE,
    ARG_EPS,
    ARG_CLAMP_FIRST,
    ARG_CU_SEQLENS,
    ARG_METHOD,
    N_COMMON_ARGS
} FwmMemoryArg;

typedef struct {
    const FwmKernels *kernels;
    const FwmRuleInfo *info;
    FwmRuleCall m;                         /* its offsets, and all that is written, are set by the caller */
    int type;                              /* NPY_FLOAT or NPY_DOUBLE */
    bool reads_once;                       /* the forward: tokens stay where they lie, even if far apart */
    npy_intp B, T, HQ, H, HV, K, V, heads; /* heads of o */
    PyArrayObject *inputs[N_INPUTS];       /* as the kernel reads them; NULL where there is none */
    PyArrayObject *came[N_INPUTS];         /* as they came: what an out must not overlap */
    PyArrayObject *o, *state, *sum;        /* of out, or NULL */
    FwmSequences sequences;
} FwmMemoryCall;

/* All inputs but those below; args: N_COMMON_ARGS. The call must be all zeros before, but for reads_once, and be
 * released after. */
int fwm_read_memory(FwmMemoryCall *c, PyObject *function, PyObject *const *args);

/* do and dfinal_state, and out (memory_out.c): after fwm_read_memory. */
int fwm_read_memory_gradients(FwmMemoryCall *c, PyObject *dout, PyObject *dfinal_state);
int fwm_read_memory_out(FwmMemoryCall *c, PyObject *out);

/* Arrays for a gradient of every input there is: new, or of out, None or a tuple like that of the results. */
int fwm_memory_gradients(FwmMemoryCall *c, PyObject *out, PyArrayObject *gradients[N_GRADIENTS]);

/* Shapes of the outputs. */
void fwm_memory_shapes(const FwmMemoryCall *c, npy_intp o[4], npy_intp state[4], npy_intp sum[3]);

void fwm_release_memory(FwmMemoryCall *c);

#endif
