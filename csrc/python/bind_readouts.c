/* fwm_py.readouts: readout_forward, readout_backward. A sequence is a task. */
#include "api/dispatch.h"
#include "python/bindings.h"

#define AT(member) FWM_AT(FwmReadoutCall, member)
#define LARGEST_N_VALUES (1 << 24)

enum { FUNCTION, N_VALUES, KEYS, VALUES, BETA, QUERY, DY, OUT };
enum { SIZE_N };

static int choose_arguments(FwmArguments *a)
{
    if (!fwm_kernels_f32()->readout_info(((const FwmReadoutCall *)a->call)->readout)->uses_beta)
        a->absent |= 1u << BETA;
    return 0;
}

static int bind_values(FwmArguments *a)
{
    return fwm_bind(a, SIZE_N, (npy_intp)a->values[N_VALUES].integer, "n_values");
}

static const FwmArgument arguments[] = {
    [FUNCTION] = {"function", FWM_ROW, .table = &fwm_readouts, .at = AT(readout), .then = choose_arguments},
    [N_VALUES] = {"n_values", FWM_INTEGER, .low = 1, .high = LARGEST_N_VALUES, .then = bind_values},
    [KEYS] = {"keys", FWM_ARRAY, "(B, L, p)", .at = AT(keys), .gradient = AT(dkeys)},
    [VALUES] = {"values", FWM_INDICES, "(B, L)", .below = "n_values", .at = AT(values)},
    [BETA] = {"beta", FWM_ARRAY, "(B, L)", .at = AT(beta), .gradient = AT(dbeta)},
    [QUERY] = {"query", FWM_ARRAY, "(B, p)", .at = AT(query), .gradient = AT(dquery)},
    [DY] = {"dy", FWM_ARRAY, "(B, n_values)", .at = AT(dy), .only = FWM_BACKWARD},
    [OUT] = {"out", FWM_OBJECT, .optional = true},
};

static const FwmSize sizes[] = {[SIZE_N] = {"n_values", AT(n_values)}, {"B", AT(B)}, {"L", AT(L)}, {"p", AT(p), 1}};

FwmBinding fwm_readout = {
    .signature = {"readout", arguments, FWM_LENGTH(arguments), 1, sizes, FWM_LENGTH(sizes)},
    .operation = offsetof(FwmKernels, readout),
    .call_size = sizeof(FwmReadoutCall),
    .outputs = {{"(B, n_values)", AT(y)}},
    .n_outputs = 1,
};
