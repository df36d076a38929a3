/* fwm_py.norm: norm_forward, norm_backward. */
#include "python/bindings.h"

#define AT(member) FWM_AT(FwmNormCall, member)

enum { X, WEIGHT, GATE, ACTIVATION, EPS, DY, OUT };

static const char *const activations[] = {"sigmoid", "silu", "swish", NULL}; /* the last two of the same function */

static const FwmArgument arguments[] = {
    [X] = {"x", FWM_ARRAY, "(..., D)", .at = AT(x), .gradient = AT(dx)},
    [WEIGHT] = {"weight", FWM_ARRAY, "(D,)", .at = AT(weight), .gradient = AT(dweight)},
    [GATE] = {"gate", FWM_ARRAY, "(..., D)", .optional = true, .at = AT(gate), .gradient = AT(dgate)},
    [ACTIVATION] = {"activation", FWM_WORD, .words = activations},
    [EPS] = {"eps", FWM_NUMBER, .at = AT(eps), .required = true, .not_negative = true},
    [DY] = {"dy", FWM_ARRAY, "(..., D)", .at = AT(dy), .only = FWM_BACKWARD},
    [OUT] = {"out", FWM_OBJECT, .optional = true},
};

static const FwmSize sizes[] = {{"D", AT(D), 1}, {"rows", AT(rows)}};

static int finish(FwmArguments *a)
{
    FwmNormCall *norm = a->call;
    norm->gating = !norm->gate ? FWM_UNGATED : a->values[ACTIVATION].word == 0 ? FWM_LOGISTIC_GATE : FWM_SILU_GATE;
    return 0;
}

FwmBinding fwm_norm = {
    .signature = {"norm", arguments, FWM_LENGTH(arguments), 0, sizes, FWM_LENGTH(sizes)},
    .operation = offsetof(FwmKernels, norm),
    .call_size = sizeof(FwmNormCall),
    .outputs = {{"(..., D)", AT(y)}},
    .n_outputs = 1,
    .finish = finish,
};
