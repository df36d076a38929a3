/* The way of an operation into _core: declared arguments and outputs, and from them the functions name_forward and
 * name_backward.
 *
 * A forward returns its first output, or a tuple of it, the state, and what else was asked for. A backward returns a
 * tuple of the gradients of the arguments that have one, with None for those that were not given. `out`, the last
 * argument of both, has arrays to write into: of a forward the first output, or a tuple like the result; of a backward
 * a tuple like the result. */
#ifndef FWM_PYTHON_OPERATION_H
#define FWM_PYTHON_OPERATION_H

#include "python/arguments.h"

typedef struct {
    const char *shape;
    size_t at;
    const char *asked_by; /* a flag, or what is not None: without it, and if out does not have it, it is left out */
    const char *may_be;   /* an argument: the output may be that very array */
    bool second;          /* of a pair with the output before, where states are pairs */
    bool never_given;     /* out cannot have it, and without it the result has no place for it */
    const char *swapped;  /* as of an argument */
    bool half;            /* in 16 bits where the first argument is */
} FwmOutput;

enum { FWM_MOST_OUTPUTS = 5 };

typedef struct {
    FwmSignature signature; /* of both directions; its name is the operation's */
    size_t operation;       /* offset in FwmKernels */
    bool forward_only;      /* it has no backward */
    size_t call_size;       /* of the struct that its kernels take */
    FwmOutput outputs[FWM_MOST_OUTPUTS];
    size_t n_outputs;
    const char *tuple;                      /* "an array y, or a tuple (y, state)": what out may be where that is so */
    int (*finish)(FwmArguments *);          /* fills in what no row can say; 0 or -1 with an exception */
    bool (*is_empty)(const FwmArguments *); /* a call without work, after which gradients are zeros */
    /* read from the rows */
    FwmShape output_shapes[FWM_MOST_OUTPUTS][2];
    int asked_by[FWM_MOST_OUTPUTS], may_be[FWM_MOST_OUTPUTS]; /* numbers of arguments, or -1 */
    PyMethodDef methods[2];
    char names[2][32];
} FwmBinding;

/* Reads the rows, and adds the two functions to the module. */
int fwm_add_operation(PyObject *module, FwmBinding *binding);

#endif
