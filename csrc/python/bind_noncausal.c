/* fwm_py.rules.linear_attention without a causal mask: noncausal_forward, noncausal_backward. */
#include "python/bindings.h"

#include <math.h>

#define AT(member) FWM_AT(FwmNoncausalCall, member)
#define TOKENS(name) FWM_TOKENS, .at = AT(name), .gradient = AT(d##name)
#define PAIR "a tuple (S, z) where normalize is True"

enum {
    NORMALIZE,
    Q,
    K,
    V,
    KEY_LENGTHS,
    INITIAL_STATE,
    INITIAL_SUM,
    SCALE,
    EPS,
    DO,
    DFINAL_STATE,
    DFINAL_SUM,
    OUTPUT_FINAL_STATE,
    OUT
};

enum { SIZE_HO };

static int pair_states(FwmArguments *a)
{
    a->paired = ((FwmNoncausalCall *)a->call)->normalize;
    return 0;
}

static int check_heads(FwmArguments *a)
{
    const FwmNoncausalCall *c = a->call;
    return fwm_check_heads(a, c->HQ, c->H, c->HV, c->K, c->V, SIZE_HO);
}

static const FwmArgument arguments[] = {
    [NORMALIZE] = {"normalize", FWM_FLAG, .at = AT(normalize), .required = true, .then = pair_states},
    [Q] = {"q", TOKENS(q), .shape = "(B, T, HQ, K)"},
    [K] = {"k", TOKENS(k), .shape = "(B, N, H, K)"},
    [V] = {"v", TOKENS(v), .shape = "(B, N, HV, V)", .then = check_heads},
    [KEY_LENGTHS] = {"key_lengths", FWM_INDICES, "(B,)", .optional = true, .below = "N", .or_equal = true,
                     .at = AT(key_lengths)},
    [INITIAL_STATE] = {"initial_state", FWM_ARRAY, "(B, HV, K, V)", .optional = true, .at = AT(initial_state),
                       .gradient = AT(dinitial_state), .first = "initial_state[0]", .expected = PAIR},
    [INITIAL_SUM] = {"initial_state[1]", FWM_ARRAY, "(B, H, K)", .at = AT(initial_sum), .gradient = AT(dinitial_sum)},
    [SCALE] = {"scale", FWM_NUMBER, .optional = true, .at = AT(scale)},
    [EPS] = {"eps", FWM_NUMBER, .at = AT(eps), .required = true},
    [DO] = {"do", FWM_ARRAY, "(B, T, HO, V)", .at = AT(dout), .only = FWM_BACKWARD},
    [DFINAL_STATE] = {"dfinal_state", FWM_ARRAY, "(B, HV, K, V)", .optional = true, .at = AT(dfinal_state),
                      .only = FWM_BACKWARD, .first = "dfinal_state[0]", .expected = PAIR},
    [DFINAL_SUM] = {"dfinal_state[1]", FWM_ARRAY, "(B, H, K)", .at = AT(dfinal_sum), .only = FWM_BACKWARD},
    [OUTPUT_FINAL_STATE] = {"output_final_state", FWM_FLAG, .only = FWM_FORWARD},
    [OUT] = {"out", FWM_OBJECT, .optional = true},
};

static const FwmSize sizes[] = {[SIZE_HO] = {"HO"}, {"B", AT(B)},      {"T", AT(T)},
                                {"N", AT(N)},       {"HQ", AT(HQ), 1}, {"H", AT(H), 1},
                                {"HV", AT(HV), 1},  {"K", AT(K), 1},   {"V", AT(V), 1}};

static int finish(FwmArguments *a)
{
    FwmNoncausalCall *c = a->call;
    if (!fwm_has(a, SCALE))
        c->scale = c->normalize ? 1 : 1 / sqrt((double)c->K);
    return 0;
}

FwmBinding fwm_noncausal = {
    .signature = {"noncausal", arguments, FWM_LENGTH(arguments), 0, sizes, FWM_LENGTH(sizes)},
    .operation = offsetof(FwmKernels, noncausal),
    .call_size = sizeof(FwmNoncausalCall),
    .outputs = {{"(B, T, HO, V)", AT(o)},
                {"(B, HV, K, V)", AT(final_state), .asked_by = "output_final_state", .may_be = "initial_state"},
                {"(B, H, K)", AT(final_sum), .asked_by = "output_final_state", .may_be = "initial_state[1]",
                 .second = true}},
    .n_outputs = 3,
    .tuple = "an array o, or a tuple (o, state)",
    .finish = finish,
};
