/* Arguments of the general memories: checked, converted once, and put into the struct that the kernels take. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include <math.h>

#include "python/args.h"
#include "python/memory_args.h"
#include "api/dispatch.h"

/* A state, or a token of all heads, of more numbers is beyond all memory; products of sizes stay far from overflow. */
#define MOST_NUMBERS ((npy_intp)1 << 40)

/* ---- options ---- */

static int read_options(FwmMemoryCall *c, PyObject *const *args)
{
    static const char *const norms[] = {"l2", "sum", NULL}, *const methods[] = {"chunked", "recurrent", NULL};
    FwmRuleCall *m = &c->m;
    if (args[ARG_QK_NORM] != Py_None) {
        const int norm = fwm_word(args[ARG_QK_NORM], "qk_norm", norms, "None, 'l2' or 'sum'");
        if (norm < 0)
            return -1;
        m->qk_norm = norm == 0 ? FWM_L2_NORM : FWM_SUM_NORM;
    }
    const int method = fwm_word(args[ARG_METHOD], "method", methods, "'chunked' or 'recurrent'");
    if (method < 0 || fwm_flag(args[ARG_CLAMP_FIRST], "clamp_first", &m->clamp_first) < 0 ||
        fwm_finite_number(args[ARG_EPS], "eps", c->type, &m->eps) < 0)
        return -1;
    m->recurrent = method == 1;
    m->scale = m->normalize ? 1 : 1 / sqrt((double)c->K);
    return args[ARG_SCALE] == Py_None ? 0 : fwm_finite_number(args[ARG_SCALE], "scale", c->type, &m->scale);
}

/* ---- arrays ---- */

/* Bytes of a token's numbers, if these lie side by side; else -1. */
static npy_intp bytes_of_token(PyArrayObject *x)
{
    npy_intp bytes = PyArray_ITEMSIZE(x);
    for (int i = PyArray_NDIM(x) - 1; i >= 2; i--) {
        if (PyArray_DIM(x, i) > 1 && PyArray_STRIDE(x, i) != bytes)
            return -1;
        bytes *= PyArray_DIM(x, i);
    }
    return bytes;
}

/* Bytes from a token to the next, which may be another sequence's. */
static npy_intp bytes_between_tokens(PyArrayObject *x)
{
    const bool one = PyArray_DIM(x, 0) <= 1 && PyArray_DIM(x, 1) <= 1;
    return one ? bytes_of_token(x) : PyArray_STRIDE(x, PyArray_DIM(x, 1) > 1);
}

/* Whether a kernel can read it as it stands: contiguous, or a part of each token of a larger array, as queries, keys
 * and values are that come from one projection. */
static bool lies_token_by_token(PyArrayObject *x)
{
    if (PyArray_NDIM(x) < 3 || !PyArray_ISALIGNED(x) || !PyArray_ISNOTSWAPPED(x) || PyArray_SIZE(x) == 0)
        return false;
    const npy_intp bytes = bytes_of_token(x), between = bytes_between_tokens(x), B = PyArray_DIM(x, 0),
                   T = PyArray_DIM(x, 1);
    return bytes > 0 && between >= bytes && between % PyArray_ITEMSIZE(x) == 0 &&
           (B <= 1 || PyArray_STRIDE(x, 0) == T * between);
}

static PyArrayObject *tokens_or_copy(PyArrayObject *came, const char *name, int type)
{
    const int got = PyArray_TYPE(came);
    const bool fits = type ? got == type : got == NPY_FLOAT || got == NPY_DOUBLE;
    if (PyArray_CheckExact(came) && fits && lies_token_by_token(came))
        return (PyArrayObject *)Py_NewRef(came);
    return fwm_real_array((PyObject *)came, name, type, "q");
}

static FwmTokens tokens_of(PyArrayObject *x)
{
    return x ? (FwmTokens){PyArray_DATA(x), (size_t)(bytes_between_tokens(x) / PyArray_ITEMSIZE(x))}
             : (FwmTokens){NULL, 0};
}

/* An array of any shape. */
static PyArrayObject *take_array(FwmMemoryCall *c, FwmMemoryInput which, PyObject *given, const char *name)
{
    if (!c->reads_once || which > IN_W)
        c->inputs[which] = fwm_real_input(given, name, c->type, "q", &c->came[which]);
    else if ((c->came[which] = fwm_any_array(given, name)))
        c->inputs[which] = tokens_or_copy(c->came[which], name, c->type);
    return c->inputs[which];
}

static int read_array(FwmMemoryCall *c, FwmMemoryInput which, PyObject *given, const char *name, const char *letters,
                      int rank, const npy_intp *shape)
{
    PyArrayObject *array = take_array(c, which, given, name);
    return array ? fwm_check_shape(array, name, letters, rank, shape) : -1;
}

static int check_not_empty(PyArrayObject *array, const char *name)
{
    if (PyArray_DIM(array, 2) > 0 && PyArray_DIM(array, 3) > 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "%s: got %zd heads of %zd, expected at least one of each", name,
                 PyArray_DIM(array, 2), PyArray_DIM(array, 3));
    return -1;
}

static int check_heads(FwmMemoryCall *c)
{
    if (c->HV % c->H) {
        PyErr_Format(PyExc_ValueError, "v: got %zd heads, expected a multiple of the %zd of k", c->HV, c->H);
        return -1;
    }
    if (c->HQ != c->H && c->HQ % c->HV) {
        PyErr_Format(PyExc_ValueError, "q: got %zd heads, expected the %zd of k, or a multiple of the %zd of v", c->HQ,
                     c->H, c->HV);
        return -1;
    }
    c->heads = c->HQ > c->HV ? c->HQ : c->HV;
    if (c->K > MOST_NUMBERS / c->V || c->heads > MOST_NUMBERS / c->K || c->heads > MOST_NUMBERS / c->V) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

/* q, k and v give all sizes. */
static int read_qkv(FwmMemoryCall *c, PyObject *const *args)
{
    npy_intp shape[] = {-1, -1, -1, -1};
    if (read_array(c, IN_Q, args[ARG_Q], "q", "(B, T, HQ, K)", 4, shape) < 0 ||
        check_not_empty(c->inputs[IN_Q], "q") < 0)
        return -1;
    const npy_intp *q = PyArray_DIMS(c->inputs[IN_Q]);
    c->type = PyArray_TYPE(c->inputs[IN_Q]);
    c->kernels = fwm_kernels_for(c->inputs[IN_Q]);
    c->B = shape[0] = q[0], c->T = shape[1] = q[1], c->HQ = q[2], c->K = shape[3] = q[3];
    if (read_array(c, IN_K, args[ARG_K], "k", "(B, T, H, K)", 4, shape) < 0 ||
        check_not_empty(c->inputs[IN_K], "k") < 0)
        return -1;
    c->H = PyArray_DIM(c->inputs[IN_K], 2);
    shape[3] = -1;
    if (read_array(c, IN_V, args[ARG_V], "v", "(B, T, HV, V)", 4, shape) < 0 ||
        check_not_empty(c->inputs[IN_V], "v") < 0)
        return -1;
    c->HV = PyArray_DIM(c->inputs[IN_V], 2), c->V = PyArray_DIM(c->inputs[IN_V], 3);
    return check_heads(c);
}

/* g: a number or a vector a token and head; its rank says which, if the rule has both. */
static int read_gate(FwmMemoryCall *c, PyObject *given)
{
    const npy_intp shape[] = {c->B, c->T, c->HV, c->K};
    const FwmRuleInfo *info = c->info;
    if (!info->scalar_gate && !info->channel_gate)
        return 0;
    PyArrayObject *g = take_array(c, IN_G, given, "g");
    if (!g)
        return -1;
    const bool both = info->scalar_gate && info->channel_gate, scalar = both ? PyArray_NDIM(g) == 3 : info->scalar_gate;
    c->m.gate = scalar ? FWM_SCALAR_GATE : FWM_CHANNEL_GATE;
    return fwm_check_shape(g, "g",
                           both     ? "(B, T, HV) or (B, T, HV, K)"
                           : scalar ? "(B, T, HV)"
                                    : "(B, T, HV, K)",
                           scalar ? 3 : 4, shape);
}

static int read_strengths(FwmMemoryCall *c, PyObject *const *args)
{
    const npy_intp keys[] = {c->B, c->T, c->HV, c->K}, values[] = {c->B, c->T, c->HV, c->V};
    switch (c->info->strength) {
    case FWM_NO_STRENGTH: return 0;
    case FWM_BETA: return read_array(c, IN_BETA, args[ARG_BETA], "beta", "(B, T, HV)", 3, keys);
    default:
        return read_array(c, IN_B, args[ARG_B], "b", "(B, T, HV, K)", 4, keys) < 0
                   ? -1
                   : read_array(c, IN_W, args[ARG_W], "w", "(B, T, HV, V)", 4, values);
    }
}

void fwm_memory_shapes(const FwmMemoryCall *c, npy_intp o[4], npy_intp state[4], npy_intp sum[3])
{
    o[0] = c->B, o[1] = c->T, o[2] = c->heads, o[3] = c->V;
    state[0] = sum[0] = c->sequences.n;
    state[1] = c->HV, state[2] = c->K, state[3] = c->V;
    sum[1] = c->H, sum[2] = c->K;
}

static const char *state_letters(const FwmMemoryCall *c)
{
    return c->sequences.offsets ? "(n, HV, K, V)" : "(B, HV, K, V)";
}

static const char *sum_letters(const FwmMemoryCall *c)
{
    return c->sequences.offsets ? "(n, H, K)" : "(B, H, K)";
}

/* None, a state, or with normalize a pair of a state and a sum of keys. names: of it, and of the two. */
static int read_state(FwmMemoryCall *c, FwmMemoryInput which, PyObject *given, const char *const names[3])
{
    npy_intp o[4], state[4], sum[3];
    fwm_memory_shapes(c, o, state, sum);
    if (given == Py_None)
        return 0;
    if (!c->m.normalize)
        return read_array(c, which, given, names[0], state_letters(c), 4, state);
    if (fwm_check_pair(given, names[0], "a tuple (S, z) where normalize is True") < 0 ||
        read_array(c, which, PyTuple_GET_ITEM(given, 0), names[1], state_letters(c), 4, state) < 0)
        return -1;
    return read_array(c, which + 1, PyTuple_GET_ITEM(given, 1), names[2], sum_letters(c), 3, sum);
}

/* ---- the whole call ---- */

static void fill(FwmMemoryCall *c)
{
    FwmRuleCall *m = &c->m;
    m->n_sequences = (size_t)c->sequences.n;
    m->HQ = (size_t)c->HQ, m->H = (size_t)c->H, m->HV = (size_t)c->HV, m->K = (size_t)c->K, m->V = (size_t)c->V;
    FwmTokens *const tokens[] = {&m->q, &m->k, &m->v, &m->g, &m->beta, &m->b, &m->w};
    for (int i = 0; i <= IN_W; i++)
        *tokens[i] = tokens_of(c->inputs[i]);
    m->initial_state = fwm_data(c->inputs[IN_STATE]);
    m->initial_sum = fwm_data(c->inputs[IN_SUM]);
}

int fwm_read_memory(FwmMemoryCall *c, PyObject *function, PyObject *const *args)
{
    static const char *const names[] = {"initial_state", "initial_state[0]", "initial_state[1]"};
    const Py_ssize_t row = fwm_find_rule(function, "function");
    if (row < 0)
        return -1;
    c->m.rule = (size_t)row;
    c->info = fwm_kernels_f32()->rule_info(c->m.rule);
    if (fwm_flag(args[ARG_NORMALIZE], "normalize", &c->m.normalize) < 0 || read_qkv(c, args) < 0 ||
        read_gate(c, args[ARG_G]) < 0 || read_strengths(c, args) < 0 ||
        fwm_read_sequences(&c->sequences, args[ARG_CU_SEQLENS], c->B, c->T) < 0 ||
        read_state(c, IN_STATE, args[ARG_INITIAL_STATE], names) < 0 || read_options(c, args) < 0)
        return -1;
    fill(c);
    return 0;
}

int fwm_read_memory_gradients(FwmMemoryCall *c, PyObject *dout, PyObject *dfinal_state)
{
    static const char *const names[] = {"dfinal_state", "dfinal_state[0]", "dfinal_state[1]"};
    npy_intp o[4], state[4], sum[3];
    fwm_memory_shapes(c, o, state, sum);
    if (read_array(c, IN_DO, dout, "do", c->HQ > c->HV ? "(B, T, HQ, V)" : "(B, T, HV, V)", 4, o) < 0 ||
        read_state(c, IN_DSTATE, dfinal_state, names) < 0)
        return -1;
    c->m.dout = tokens_of(c->inputs[IN_DO]);
    c->m.dfinal_state = fwm_data(c->inputs[IN_DSTATE]);
    c->m.dfinal_sum = fwm_data(c->inputs[IN_DSUM]);
    return 0;
}

void fwm_release_memory(FwmMemoryCall *c)
{
    for (int i = 0; i < N_INPUTS; i++) {
        Py_XDECREF(c->inputs[i]);
        Py_XDECREF(c->came[i]);
    }
    Py_XDECREF(c->o);
    Py_XDECREF(c->state);
    Py_XDECREF(c->sum);
    fwm_release_sequences(&c->sequences);
}
