/* fwm_py.feature_maps: map_forward, map_backward. The row of the map says which of nu and omega a call takes. */
#include "api/dispatch.h"
#include "python/bindings.h"

#define AT(member) FWM_AT(FwmMapCall, member)
#define LARGEST_D (1 << 20)
#define LARGEST_FEATURES 2147483647LL

enum { FUNCTION, X, ARGUMENT, OMEGA, FEATURES, DY, OUT };
enum { SIZE_D, SIZE_M, SIZE_P };

static const FwmMapInfo *info_of(const FwmArguments *a)
{
    return fwm_kernels_f32()->map_info(((const FwmMapCall *)a->call)->map);
}

static int choose_arguments(FwmArguments *a)
{
    const FwmMapInfo *map = info_of(a);
    if (!map->takes_omega)
        a->absent |= 1u << OMEGA;
    if (map->takes_omega || !map->argument[0])
        a->absent |= 1u << ARGUMENT;
    return 0;
}

/* A whole number, which the map calls by a name of its own. */
static int read_number(FwmArguments *a)
{
    FwmMapCall *c = a->call;
    long long number;
    if (fwm_integer(a->given[ARGUMENT], info_of(a)->argument, 1, LARGEST_FEATURES / (2 * (long long)c->d), &number) < 0)
        return -1;
    c->argument = (size_t)number;
    return 0;
}

static int count_features(FwmArguments *a)
{
    const FwmMapCall *c = a->call;
    return fwm_bind(a, SIZE_P, (npy_intp)a->kernels->map_features(c->map, c->d, c->argument), "phi");
}

static const FwmArgument arguments[] = {
    [FUNCTION] = {"function", FWM_ROW, .table = &fwm_maps, .at = AT(map), .then = choose_arguments},
    [X] = {"x", FWM_ARRAY, "(..., d)", .at = AT(x), .gradient = AT(dx)},
    [ARGUMENT] = {"argument", FWM_OBJECT, .then = read_number},
    [OMEGA] = {"omega", FWM_ARRAY, "(d, m)", .at = AT(omega), .stored = FWM_FLOAT32_OR_FLOAT64},
    [FEATURES] = {"", FWM_STEP, .then = count_features},
    [DY] = {"dy", FWM_ARRAY, "(..., p)", .at = AT(dphi), .only = FWM_BACKWARD},
    [OUT] = {"out", FWM_OBJECT, .optional = true},
};

static const FwmSize sizes[] = {
    [SIZE_D] = {"d", AT(d), 1, LARGEST_D}, [SIZE_M] = {"m", AT(argument), 1}, [SIZE_P] = {"p"}, {"rows", AT(n)}};

FwmBinding fwm_map = {
    .signature = {"map", arguments, FWM_LENGTH(arguments), 1, sizes, FWM_LENGTH(sizes)},
    .operation = offsetof(FwmKernels, map),
    .call_size = sizeof(FwmMapCall),
    .outputs = {{"(..., p)", AT(phi)}},
    .n_outputs = 1,
};

enum { OF_FUNCTION, OF_D, OF_ARGUMENT };

static const FwmArgument features_rows[] = {
    [OF_FUNCTION] = {"function", FWM_ROW, .table = &fwm_maps},
    [OF_D] = {"d", FWM_INTEGER, .low = 0, .high = LARGEST_FEATURES},
    [OF_ARGUMENT] = {"argument", FWM_INTEGER, .low = 0, .high = LARGEST_FEATURES},
};

/* How many features a map makes of d numbers. */
static PyObject *count(PyObject *Py_UNUSED(self), FwmArguments *a)
{
    const size_t row = (size_t)a->values[OF_FUNCTION].integer, d = (size_t)a->values[OF_D].integer,
                 argument = (size_t)a->values[OF_ARGUMENT].integer;
    return PyLong_FromSize_t(fwm_kernels_f32()->map_features(row, d, argument));
}

FwmModuleFunction fwm_map_features = {
    .signature = {"map_features", features_rows, FWM_LENGTH(features_rows), FWM_LENGTH(features_rows)}, .call = count};
