/* fwm_py.convolution: convolution_forward, convolution_backward; convolution_update_forward. */
#include "python/arrays.h"
#include "python/bindings.h"

#define AT(member) FWM_AT(FwmConvolutionCall, member)

enum { X, WEIGHT, BIAS, ACTIVATION, CU_SEQLENS, INITIAL_STATE, DY, DFINAL_STATE, OUTPUT_FINAL_STATE, OUT };

static const char *const activations[] = {"silu", "swish", NULL}; /* of the same function */

static const FwmArgument arguments[] = {
    [X] = {"x", FWM_ARRAY, "(B, T, D)", .at = AT(x), .gradient = AT(dx)},
    [WEIGHT] = {"weight", FWM_ARRAY, "(D, W)", .at = AT(weight), .gradient = AT(dweight)},
    [BIAS] = {"bias", FWM_ARRAY, "(D,)", .optional = true, .at = AT(bias), .gradient = AT(dbias)},
    [ACTIVATION] = {"activation", FWM_WORD, .optional = true, .words = activations},
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

/* ---- the update of states ---- */

#define IN_UPDATE(member) FWM_AT(FwmConvolutionUpdateCall, member)

/* clang-format off */
enum { NEW_X, STATES, NEW_WEIGHT, NEW_BIAS, NEW_ACTIVATION, STATE_INDICES, POSITIONS, NEW_OUT };
/* clang-format on */

enum { SIZE_B, SIZE_P, SIZE_L, SIZE_W };

/* There are as many states as sequences, unless conv_state_indices chooses among more. */
static int count_states(FwmArguments *a)
{
    const bool pooled = (a->is_given >> STATE_INDICES & 1) && a->given[STATE_INDICES] != Py_None;
    return pooled ? 0 : fwm_bind(a, SIZE_P, a->sizes[SIZE_B], "x");
}

static const FwmArgument update_arguments[] = {
    [NEW_X] = {"x", FWM_ARRAY, "(B, T, D)", .at = IN_UPDATE(convolution.x), .then = count_states},
    [STATES] = {"conv_state", FWM_ARRAY, "(P, L, D)", .in_place = true, .at = IN_UPDATE(states)},
    [NEW_WEIGHT] = {"weight", FWM_ARRAY, "(D, W)", .at = IN_UPDATE(convolution.weight)},
    [NEW_BIAS] = {"bias", FWM_ARRAY, "(D,)", .optional = true, .at = IN_UPDATE(convolution.bias)},
    [NEW_ACTIVATION] = {"activation", FWM_WORD, .optional = true, .words = activations},
    [STATE_INDICES] = {"conv_state_indices", FWM_INDICES, "(B,)", .optional = true, .low = -1, .below = "P",
                       .at = IN_UPDATE(state_indices)},
    [POSITIONS] = {"cache_seqlens", FWM_INDICES, "(B,)", .optional = true, .at = IN_UPDATE(positions)},
    [NEW_OUT] = {"out", FWM_OBJECT, .optional = true},
};

static const FwmSize update_sizes[] = {[SIZE_B] = {"B", IN_UPDATE(B)},
                                       [SIZE_P] = {"P"},
                                       [SIZE_L] = {"L", IN_UPDATE(L)},
                                       [SIZE_W] = {"W", IN_UPDATE(convolution.W), FWM_FEWEST_TAPS, FWM_MOST_TAPS},
                                       {"T", IN_UPDATE(T)},
                                       {"D", IN_UPDATE(convolution.D), 1}};

/* Other states and inputs must not change under the hands of a thread. */
static int check_states(const FwmArguments *a)
{
    PyArrayObject *states = a->arrays[STATES];
    const FwmBounds bounds = fwm_bounds(states);
    for (int i = 0; i < NEW_OUT; i++) {
        PyArrayObject *other = !(a->held >> i & 1) ? NULL : a->came[i] ? a->came[i] : a->arrays[i];
        if (other && i != STATES && fwm_check_apart(states, bounds, "conv_state", other, update_arguments[i].name) < 0)
            return -1;
    }
    return 0;
}

static int finish_update(FwmArguments *a)
{
    FwmConvolutionUpdateCall *u = a->call;
    u->convolution.silu = a->values[NEW_ACTIVATION].word != 0;
    const npy_intp least = a->sizes[SIZE_W] - 1 > (u->positions != NULL) ? a->sizes[SIZE_W] - 1 : u->positions != NULL;
    if (a->sizes[SIZE_L] < least) {
        PyErr_Format(PyExc_ValueError, "conv_state: got L = %zd, expected at least %zd, for W = %zd", a->sizes[SIZE_L],
                     least, a->sizes[SIZE_W]);
        return -1;
    }
    if (check_states(a) < 0)
        return -1;
    return u->state_indices
               ? fwm_check_distinct(u->state_indices, a->sizes[SIZE_B], 1, a->sizes[SIZE_P], "conv_state_indices")
               : 0;
}

FwmBinding fwm_convolution_update = {
    .signature = {"convolution_update", update_arguments, FWM_LENGTH(update_arguments), 0, update_sizes,
                  FWM_LENGTH(update_sizes)},
    .operation = offsetof(FwmKernels, convolution_update),
    .forward_only = true,
    .call_size = sizeof(FwmConvolutionUpdateCall),
    .outputs = {{"(B, T, D)", IN_UPDATE(convolution.y)}},
    .n_outputs = 1,
    .finish = finish_update,
};
