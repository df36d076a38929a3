/* fwm_py.convolution: convolution_forward, convolution_backward. */
#include "python/bindings.h"

#define AT(member) FWM_AT(FwmConvolutionCall, member)

enum { X, WEIGHT, BIAS, ACTIVATION, CU_SEQLENS, INITIAL_STATE, DY, DFINAL_STATE, OUTPUT_FINAL_STATE, OUT };

const char *const fwm_silu_words[] = {"silu", "swish", NULL};

static const FwmArgument arguments[] = {
    [X] = {"x", FWM_ARRAY, "(B, T, D)", .at = AT(x), .gradient = AT(dx)},
    [WEIGHT] = {"weight", FWM_ARRAY, "(D, W)", .at = AT(weight), .gradient = AT(dweight)},
    [BIAS] = {"bias", FWM_ARRAY, "(D,)", .optional = true, .at = AT(bias), .gradient = AT(dbias)},
    [ACTIVATION] = {"activation", FWM_WORD, .optional = true, .words = fwm_silu_words},
    [CU_SEQLENS] = {"cu_seqlens", FWM_SEQUENCES},
    [INITIAL_STATE] = {"initial_state", FWM_ARRAY, "(n, W - 1, D)", .optional = true, .at = AT(initial_state),
                       .gradient = AT(dinitial_state)},
    [DY] = {"dy", FWM_ARRAY, "(B, T, D)", .at = AT(dy), .only = FWM_BACKWARD},
    [DFINAL_STATE] = {"dfinal_state", FWM_ARRAY, "(n, W - 1, D)", .optional = true, .at = AT(dfinal_state),
                      .only = FWM_BACKWARD},
    [OUTPUT_FINAL_STATE] = {"output_final_state", FWM_FLAG, .only = FWM_FORWARD},
    [OUT] = {"out", FWM_OBJECT, .optional = true},
};

enum { B, T };

static const FwmSize sizes[] = {
    [B] = {"B"}, [T] = {"T"}, {"D", AT(D), 1}, {"W", AT(W), FWM_FEWEST_TAPS, FWM_MOST_TAPS}, {"n"}};

/* Where each sequence begins. Without tokens and without states, there might as well be none. */
static int finish(FwmArguments *a)
{
    FwmConvolutionCall *c = a->call;
    c->silu = a->values[ACTIVATION].word != 0;
    const bool forward = a->direction == FWM_FORWARD;
    const bool has_states = fwm_has(a, INITIAL_STATE) || fwm_has(a, DFINAL_STATE) ||
                            (forward && a->values[OUTPUT_FINAL_STATE].flag) ||
                            (forward && fwm_has(a, OUT) && PyTuple_Check(a->given[OUT]));
    if (a->sizes[T] == 0 && !has_states)
        a->sequences.n = 0;
    if (fwm_make_offsets(&a->sequences, a->sizes[T]) < 0)
        return -1;
    c->n_sequences = (size_t)a->sequences.n;
    c->offsets = a->sequences.offsets;
    return 0;
}

FwmBinding fwm_convolution = {
    .signature = {"convolution", arguments, FWM_LENGTH(arguments), 0, sizes, FWM_LENGTH(sizes)},
    .operation = offsetof(FwmKernels, convolution),
    .call_size = sizeof(FwmConvolutionCall),
    .outputs = {{"(B, T, D)", AT(y)},
                {"(n, W - 1, D)", AT(final_state), .asked_by = "output_final_state", .may_be = "initial_state"}},
    .n_outputs = 2,
    .tuple = "an array y, or a tuple (y, state)",
    .finish = finish,
};
