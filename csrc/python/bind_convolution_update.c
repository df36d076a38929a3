/* fwm_py.convolution: convolution_update_forward, of causal_conv1d_update. */
#include "python/arrays.h"
#include "python/bindings.h"

#define AT(member) FWM_AT(FwmConvolutionUpdateCall, member)

enum { X, CONV_STATE, WEIGHT, BIAS, ACTIVATION, CONV_STATE_INDICES, CACHE_SEQLENS, OUT };

enum { SIZE_B, SIZE_P, SIZE_L, SIZE_W };

/* There are as many states as sequences, unless conv_state_indices chooses among more. */
static int count_states(FwmArguments *a)
{
    return fwm_comes(a, CONV_STATE_INDICES) ? 0 : fwm_bind(a, SIZE_P, a->sizes[SIZE_B], "x");
}

static const FwmArgument arguments[] = {
    [X] = {"x", FWM_ARRAY, "(B, T, D)", .at = AT(convolution.x), .then = count_states},
    [CONV_STATE] = {"conv_state", FWM_ARRAY, "(P, L, D)", .in_place = true, .at = AT(states)},
    [WEIGHT] = {"weight", FWM_ARRAY, "(D, W)", .at = AT(convolution.weight)},
    [BIAS] = {"bias", FWM_ARRAY, "(D,)", .optional = true, .at = AT(convolution.bias)},
    [ACTIVATION] = {"activation", FWM_WORD, .optional = true, .words = fwm_silu_words},
    [CONV_STATE_INDICES] = {"conv_state_indices", FWM_INDICES, "(B,)", .optional = true, .low = -1, .below = "P",
                            .at = AT(state_indices)},
    [CACHE_SEQLENS] = {"cache_seqlens", FWM_INDICES, "(B,)", .optional = true, .at = AT(positions)},
    [OUT] = {"out", FWM_OBJECT, .optional = true},
};

static const FwmSize sizes[] = {[SIZE_B] = {"B", AT(B)},
                                [SIZE_P] = {"P"},
                                [SIZE_L] = {"L", AT(L)},
                                [SIZE_W] = {"W", AT(convolution.W), FWM_FEWEST_TAPS, FWM_MOST_TAPS},
                                {"T", AT(T)},
                                {"D", AT(convolution.D), 1}};

static int finish(FwmArguments *a)
{
    FwmConvolutionUpdateCall *u = a->call;
    npy_intp least = a->sizes[SIZE_W] - 1;
    if (least == 0 && u->positions)
        least = 1; /* a ring has a row */
    u->convolution.silu = a->values[ACTIVATION].word != 0;
    if (a->sizes[SIZE_L] < least) {
        PyErr_Format(PyExc_ValueError, "conv_state: got L = %zd, expected at least %zd, for W = %zd", a->sizes[SIZE_L],
                     least, a->sizes[SIZE_W]);
        return -1;
    }
    return !u->state_indices
               ? 0
               : fwm_check_distinct(u->state_indices, a->sizes[SIZE_B], 1, a->sizes[SIZE_P], "conv_state_indices");
}

FwmBinding fwm_convolution_update = {
    .signature = {"convolution_update", arguments, FWM_LENGTH(arguments), 0, sizes, FWM_LENGTH(sizes)},
    .operation = offsetof(FwmKernels, convolution_update),
    .forward_only = true,
    .call_size = sizeof(FwmConvolutionUpdateCall),
    .outputs = {{"(B, T, D)", AT(convolution.y)}},
    .n_outputs = 1,
    .finish = finish,
};
