/* fwm_py.rules: rule_forward, rule_backward. The row of the rule says which arguments a call takes. */
#include <math.h>

#include "api/dispatch.h"
#include "python/arrays.h"
#include "python/bindings.h"

#define AT(member) FWM_AT(FwmRuleCall, member)
#define TOKENS(name) FWM_TOKENS, .at = AT(name), .gradient = AT(d##name), .halves = true
#define STATE(n) "(" n ", HV, K, V)", .swapped = "(" n ", HV, V, K)"
#define PAIR "a tuple (S, z) where normalize is True"

/* clang-format off */
enum { FUNCTION, NORMALIZE, STATE_V_FIRST, Q, K, V, G, BETA, ERASE, WRITE, CU_SEQLENS, INITIAL_STATE, INITIAL_SUM,
       STATE_INDICES, SCALE, QK_NORM, EPS, CLAMP_FIRST, METHOD, DO, DFINAL_STATE, DFINAL_SUM, OUTPUT_FINAL_STATE,
       RETURN_STATES_EVERY, OUT };
/* clang-format on */

enum { SIZE_B, SIZE_T, SIZE_HO, SIZE_N, SIZE_P, SIZE_KEPT };

static const char *const norms[] = {[FWM_L2_NORM - 1] = "l2", [FWM_SUM_NORM - 1] = "sum", NULL};
static const char *const methods[] = {[FWM_CHUNKED] = "chunked", [FWM_RECURRENT] = "recurrent", NULL};

static void leave_out(FwmArguments *a, int argument, bool takes)
{
    if (!takes)
        a->absent |= (uint32_t)1 << argument;
}

static int choose_arguments(FwmArguments *a)
{
    const FwmRuleInfo *rule = fwm_kernels_f32()->rule_info(((FwmRuleCall *)a->call)->rule);
    leave_out(a, G, rule->scalar_gate || rule->channel_gate);
    leave_out(a, BETA, rule->strength == FWM_BETA);
    leave_out(a, ERASE, rule->strength == FWM_ERASE_AND_WRITE);
    leave_out(a, WRITE, rule->strength == FWM_ERASE_AND_WRITE);
    leave_out(a, NORMALIZE, rule->normalizes);
    leave_out(a, EPS, rule->normalizes);
    leave_out(a, QK_NORM, rule->has_qk_norm);
    leave_out(a, CLAMP_FIRST, rule->clamps);
    return 0;
}

static int pair_states(FwmArguments *a)
{
    a->paired = ((FwmRuleCall *)a->call)->normalize;
    return 0;
}

static int swap_states(FwmArguments *a)
{
    a->swapped = ((FwmRuleCall *)a->call)->state_v_first;
    return 0;
}

/* There are as many states as sequences, unless state_indices chooses among more. */
static int count_states(FwmArguments *a)
{
    if (!fwm_comes(a, STATE_INDICES))
        return fwm_bind(a, SIZE_P, a->sizes[SIZE_N], "cu_seqlens");
    if (fwm_comes(a, INITIAL_STATE))
        return 0;
    PyErr_Format(PyExc_ValueError, "state_indices: got %.100s, expected None without initial_state",
                 Py_TYPE(a->given[STATE_INDICES])->tp_name);
    return -1;
}

/* q, k and v give all sizes. */
static int check_heads(FwmArguments *a)
{
    const FwmRuleCall *c = a->call;
    return fwm_check_heads(a, c->HQ, c->H, c->HV, c->K, c->V, SIZE_HO);
}

/* A number or a vector a token and head: its axes say which, but some rules have one of them only. */
static int check_gate(FwmArguments *a)
{
    FwmRuleCall *c = a->call;
    const FwmRuleInfo *rule = fwm_kernels_f32()->rule_info(c->rule);
    const bool is_scalar = PyArray_NDIM(a->arrays[G]) == 3;
    c->gate = is_scalar ? FWM_SCALAR_GATE : FWM_CHANNEL_GATE;
    if (is_scalar ? rule->scalar_gate : rule->channel_gate)
        return 0;
    PyErr_Format(PyExc_ValueError, "g: got %d axes, expected %s", PyArray_NDIM(a->arrays[G]),
                 is_scalar ? "(B, T, HV, K)" : "(B, T, HV)");
    return -1;
}

static const FwmArgument arguments[] = {
    [FUNCTION] = {"function", FWM_ROW, .table = &fwm_rules, .at = AT(rule), .then = choose_arguments},
    [NORMALIZE] = {"normalize", FWM_FLAG, .at = AT(normalize), .then = pair_states},
    [STATE_V_FIRST] = {"state_v_first", FWM_FLAG, .at = AT(state_v_first), .then = swap_states},
    [Q] = {"q", TOKENS(q), .shape = "(B, T, HQ, K)"},
    [K] = {"k", TOKENS(k), .shape = "(B, T, H, K)"},
    [V] = {"v", TOKENS(v), .shape = "(B, T, HV, V)", .then = check_heads},
    [G] = {"g", TOKENS(g), .shape = "(B, T, HV) or (B, T, HV, K)", .then = check_gate},
    [BETA] = {"beta", TOKENS(beta), .shape = "(B, T, HV)"},
    [ERASE] = {"b", TOKENS(b), .shape = "(B, T, HV, K)"},
    [WRITE] = {"w", TOKENS(w), .shape = "(B, T, HV, V)"},
    [CU_SEQLENS] = {"cu_seqlens", FWM_SEQUENCES, .then = count_states},
    [INITIAL_STATE] = {"initial_state", FWM_ARRAY, STATE("P"), .optional = true, .at = AT(initial_state),
                       .gradient = AT(dinitial_state), .first = "initial_state[0]", .expected = PAIR},
    [INITIAL_SUM] = {"initial_state[1]", FWM_ARRAY, "(P, H, K)", .at = AT(initial_sum), .gradient = AT(dinitial_sum)},
    [STATE_INDICES] = {"state_indices", FWM_INDICES, "(n,)", .optional = true, .below = "P", .at = AT(state_indices),
                       .only = FWM_FORWARD},
    [SCALE] = {"scale", FWM_NUMBER, .optional = true, .at = AT(scale)},
    [QK_NORM] = {"qk_norm", FWM_WORD, .optional = true, .words = norms, .at = AT(qk_norm)},
    [EPS] = {"eps", FWM_NUMBER, .at = AT(eps), .required = true},
    [CLAMP_FIRST] = {"clamp_first", FWM_FLAG, .at = AT(clamp_first), .required = true},
    [METHOD] = {"method", FWM_WORD, .words = methods, .at = AT(method)},
    [DO] = {"do", FWM_TOKENS, "(B, T, HO, V)", .at = AT(dout), .only = FWM_BACKWARD, .halves = true},
    [DFINAL_STATE] = {"dfinal_state", FWM_ARRAY, STATE("n"), .optional = true, .at = AT(dfinal_state),
                      .only = FWM_BACKWARD, .first = "dfinal_state[0]", .expected = PAIR},
    [DFINAL_SUM] = {"dfinal_state[1]", FWM_ARRAY, "(n, H, K)", .at = AT(dfinal_sum), .only = FWM_BACKWARD},
    [OUTPUT_FINAL_STATE] = {"output_final_state", FWM_FLAG, .only = FWM_FORWARD},
    [RETURN_STATES_EVERY] = {"return_states_every", FWM_INTEGER, .optional = true, .low = FWM_TILE,
                             .high = (long long)1 << 40, .at = AT(keep_every), .only = FWM_FORWARD},
    [OUT] = {"out", FWM_OBJECT, .optional = true},
};

static const FwmSize sizes[] = {
    [SIZE_B] = {"B"},  [SIZE_T] = {"T"},    [SIZE_HO] = {"HO"}, [SIZE_N] = {"n", AT(n_sequences)},
    [SIZE_P] = {"P"},  [SIZE_KEPT] = {"N"}, {"HQ", AT(HQ), 1},  {"H", AT(H), 1},
    {"HV", AT(HV), 1}, {"K", AT(K), 1},     {"V", AT(V), 1}};

static bool has_out_state(const FwmArguments *a)
{
    return fwm_has(a, OUT) && a->direction == FWM_FORWARD && PyTuple_Check(a->given[OUT]);
}

/* Without tokens there is work for the states only, and without sequences none. */
static bool is_empty(const FwmArguments *a)
{
    const bool has_states = fwm_has(a, INITIAL_STATE) || fwm_has(a, DFINAL_STATE) || has_out_state(a) ||
                            (a->direction == FWM_FORWARD && a->values[OUTPUT_FINAL_STATE].flag);
    return a->sizes[SIZE_N] == 0 || (a->sizes[SIZE_T] == 0 && !has_states);
}

/* A pool's states are changed in place, each by one sequence. */
static bool is_in_place(const FwmArguments *a)
{
    PyObject *state = PyTuple_GET_SIZE(a->given[OUT]) == 2 ? PyTuple_GET_ITEM(a->given[OUT], 1) : NULL;
    for (int i = INITIAL_STATE; state && i <= INITIAL_STATE + a->paired; i++) {
        if (a->paired && !(PyTuple_Check(state) && PyTuple_GET_SIZE(state) == 2))
            return false;
        PyObject *part = a->paired ? PyTuple_GET_ITEM(state, i - INITIAL_STATE) : state;
        if (!PyArray_Check(part) || PyArray_DATA((PyArrayObject *)part) != PyArray_DATA(a->arrays[i]))
            return false;
    }
    return state != NULL;
}

static int check_pool(const FwmArguments *a)
{
    const int32_t *indices = ((FwmRuleCall *)a->call)->state_indices;
    if (!has_out_state(a) || !is_in_place(a)) {
        PyErr_SetString(PyExc_ValueError, "state_indices: got an array, expected None unless out has initial_state "
                                          "itself, whose states are then changed in place");
        return -1;
    }
    return fwm_check_distinct(indices, a->sizes[SIZE_N], 0, a->sizes[SIZE_P], "state_indices");
}

/* How many states of a row are kept; of packed sequences, which are one row, of all. */
static int count_kept(FwmArguments *a)
{
    const size_t every = ((FwmRuleCall *)a->call)->keep_every;
    const int64_t *offsets = a->sequences.offsets;
    if (every % FWM_TILE) {
        PyErr_Format(PyExc_ValueError, "return_states_every: got %zu, expected a multiple of %d", every, FWM_TILE);
        return -1;
    }
    npy_intp kept = offsets ? 0 : a->sizes[SIZE_T] / (npy_intp)every;
    for (npy_intp i = 0; offsets && i < a->sizes[SIZE_N]; i++)
        kept += (npy_intp)((offsets[i + 1] - offsets[i]) / (int64_t)every);
    a->sizes[SIZE_KEPT] = kept;
    return 0;
}

static int finish(FwmArguments *a)
{
    FwmRuleCall *c = a->call;
    if (c->normalize && c->qk_norm != FWM_NO_NORM) {
        PyErr_Format(PyExc_ValueError, "qk_norm: got '%s', expected None where normalize is True",
                     norms[c->qk_norm - 1]);
        return -1;
    }
    if (!fwm_has(a, SCALE))
        c->scale = c->normalize ? 1 : 1 / sqrt((double)c->K);
    if ((fwm_has(a, STATE_INDICES) && check_pool(a) < 0) || (fwm_has(a, RETURN_STATES_EVERY) && count_kept(a) < 0))
        return -1;
    if (is_empty(a))
        return 0;
    if (fwm_make_offsets(&a->sequences, a->sizes[SIZE_T]) < 0)
        return -1;
    c->offsets = a->sequences.offsets;
    return 0;
}

FwmBinding fwm_rule = {
    .signature = {"rule", arguments, FWM_LENGTH(arguments), 1, sizes, FWM_LENGTH(sizes)},
    .operation = offsetof(FwmKernels, rule),
    .call_size = sizeof(FwmRuleCall),
    .outputs = {{"(B, T, HO, V)", AT(o), .half = true},
                {"(P, HV, K, V)", AT(final_state), .asked_by = "output_final_state", .may_be = "initial_state",
                 .swapped = "(P, HV, V, K)"},
                {"(P, H, K)", AT(final_sum), .asked_by = "output_final_state", .may_be = "initial_state[1]",
                 .second = true},
                {"(B, N, HV, K, V)", AT(kept_states), .asked_by = "return_states_every", .never_given = true,
                 .swapped = "(B, N, HV, V, K)"},
                {"(B, N, H, K)", AT(kept_sums), .asked_by = "return_states_every", .second = true,
                 .never_given = true}},
    .n_outputs = 5,
    .tuple = "an array o, or a tuple (o, state)",
    .finish = finish,
    .is_empty = is_empty,
};
