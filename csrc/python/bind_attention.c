/* fwm_py.attention: attention_forward, attention_backward. */
#include <math.h>

#include "python/bindings.h"

#define AT(member) FWM_AT(FwmAttentionCall, member)

enum { Q, K, V, KEY_LENGTHS, CAUSAL, SCALE, DO, O, LSE, RETURN_LSE, OUT };

static int check_heads(FwmArguments *a)
{
    const FwmAttentionCall *c = a->call;
    if (c->HQ % c->H == 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "q: got %zu heads, expected a multiple of the %zu of k", c->HQ, c->H);
    return -1;
}

static int check_tokens(FwmArguments *a)
{
    const FwmAttentionCall *c = a->call;
    if (c->causal && c->S < c->T)
        PyErr_Format(PyExc_ValueError, "k: got %zu tokens, expected at least the %zu of q, because causal", c->S, c->T);
    else if (c->S == 0 && c->T > 0)
        PyErr_Format(PyExc_ValueError, "k: got no tokens, expected at least one for the %zu of q", c->T);
    else
        return 0;
    return -1;
}

static const FwmArgument arguments[] = {
    [Q] = {"q", FWM_ARRAY, "(B, T, HQ, K)", .at = AT(q), .gradient = AT(dq)},
    [K] = {"k", FWM_ARRAY, "(B, S, H, K)", .at = AT(k), .gradient = AT(dk), .then = check_heads},
    [V] = {"v", FWM_ARRAY, "(B, S, H, V)", .at = AT(v), .gradient = AT(dv)},
    [KEY_LENGTHS] = {"key_lengths", FWM_INDICES, "(B,)", .optional = true, .below = "S", .or_equal = true,
                     .at = AT(key_lengths)},
    [CAUSAL] = {"causal", FWM_FLAG, .at = AT(causal), .required = true, .then = check_tokens},
    [SCALE] = {"scale", FWM_NUMBER, .optional = true, .at = AT(scale)},
    [DO] = {"do", FWM_ARRAY, "(B, T, HQ, V)", .at = AT(dout), .only = FWM_BACKWARD},
    [O] = {"o", FWM_ARRAY, "(B, T, HQ, V)", .optional = true, .at = AT(o), .only = FWM_BACKWARD},
    [LSE] = {"lse", FWM_ARRAY, "(B, T, HQ)", .optional = true, .at = AT(lse), .only = FWM_BACKWARD},
    [RETURN_LSE] = {"return_lse", FWM_FLAG, .only = FWM_FORWARD},
    [OUT] = {"out", FWM_OBJECT, .optional = true},
};

static const FwmSize sizes[] = {{"B", AT(B)},    {"T", AT(T)},    {"S", AT(S)},   {"HQ", AT(HQ), 1},
                                {"H", AT(H), 1}, {"K", AT(K), 1}, {"V", AT(V), 1}};

/* What the forward gave, both or neither; and the scale. */
static int finish(FwmArguments *a)
{
    FwmAttentionCall *c = a->call;
    if (!fwm_has(a, SCALE))
        c->scale = 1 / sqrt((double)c->K);
    if (fwm_has(a, O) == fwm_has(a, LSE))
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: got None, expected an array, because %s is given", fwm_has(a, O) ? "lse" : "o",
                 fwm_has(a, O) ? "o" : "lse");
    return -1;
}

static bool is_empty(const FwmArguments *a)
{
    const FwmAttentionCall *c = a->call;
    return c->B == 0 || c->T == 0;
}

FwmBinding fwm_attention = {
    .signature = {"attention", arguments, FWM_LENGTH(arguments), 0, sizes, FWM_LENGTH(sizes)},
    .operation = offsetof(FwmKernels, attention),
    .call_size = sizeof(FwmAttentionCall),
    .outputs = {{"(B, T, HQ, V)", AT(o)}, {"(B, T, HQ)", AT(lse), .asked_by = "return_lse", .never_given = true}},
    .n_outputs = 2,
    .finish = finish,
    .is_empty = is_empty,
};
