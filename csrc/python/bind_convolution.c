/* fwm_py.convolution: convolution_forward, convolution_backward. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include "python/args.h"
#include "python/bind_convolution.h"
#include "runtime/scratch.h"
#include "python/sequences.h"
#include "runtime/threads.h"

/* The arrays of a call. In the backward, those up to the state have gradients, in the same order. */
typedef enum { IN_X, IN_WEIGHT, IN_BIAS, IN_STATE, IN_DY, IN_DSTATE, N_INPUTS } Input;
#define N_GRADIENTS (IN_STATE + 1)

typedef struct {
    const FwmKernels *kernels;
    FwmConvolutionCall c;
    int type;
    npy_intp x_shape[3], state_shape[3];
    FwmSequences sequences;
    PyArrayObject *inputs[N_INPUTS]; /* as the kernel reads them; NULL where there is none */
    PyArrayObject *came[N_INPUTS];   /* as they came: what an out must not overlap */
    PyArrayObject *y, *state;
    PyArrayObject *gradients[N_GRADIENTS]; /* NULL for inputs that there are not */
} Call;

static const char *const input_names[N_INPUTS] = {"x", "weight", "bias", "initial_state", "dy", "dfinal_state"};

static void release(Call *k)
{
    for (int i = 0; i < N_INPUTS; i++) {
        Py_XDECREF(k->inputs[i]);
        Py_XDECREF(k->came[i]);
    }
    for (int i = 0; i < N_GRADIENTS; i++)
        Py_XDECREF(k->gradients[i]);
    Py_XDECREF(k->y);
    Py_XDECREF(k->state);
    fwm_release_sequences(&k->sequences);
}

/* ---- inputs ---- */

static int read_array(Call *k, Input which, PyObject *given, const char *name, const char *letters, int rank,
                      const npy_intp *shape)
{
    PyArrayObject *array = k->inputs[which] = fwm_real_input(given, name, k->type, "x", &k->came[which]);
    return array ? fwm_check_shape(array, name, letters, rank, shape) : -1;
}

static const char *state_letters(const Call *k)
{
    return k->sequences.offsets ? "(n, W - 1, D)" : "(B, W - 1, D)";
}

static int read_state(Call *k, Input which, PyObject *given, const char *name)
{
    return given == Py_None ? 0 : read_array(k, which, given, name, state_letters(k), 3, k->state_shape);
}

static int read_x(Call *k, PyObject *x)
{
    const npy_intp any[] = {-1, -1, -1};
    if (read_array(k, IN_X, x, "x", "(B, T, D)", 3, any) < 0)
        return -1;
    k->type = PyArray_TYPE(k->inputs[IN_X]);
    k->kernels = fwm_kernels_for(k->inputs[IN_X]);
    for (int i = 0; i < 3; i++)
        k->x_shape[i] = PyArray_DIM(k->inputs[IN_X], i);
    k->c.D = (size_t)k->x_shape[2];
    if (k->c.D > 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "x: got no channels, expected at least one");
    return -1;
}

static int read_filters(Call *k, PyObject *weight, PyObject *bias)
{
    const npy_intp shape[] = {k->x_shape[2], -1};
    if (read_array(k, IN_WEIGHT, weight, "weight", "(D, W)", 2, shape) < 0)
        return -1;
    const npy_intp W = PyArray_DIM(k->inputs[IN_WEIGHT], 1);
    if (W < FWM_FEWEST_TAPS || W > FWM_MOST_TAPS) {
        PyErr_Format(PyExc_ValueError, "weight: got W = %zd, expected %d to %d", W, FWM_FEWEST_TAPS, FWM_MOST_TAPS);
        return -1;
    }
    k->c.W = (size_t)W;
    return bias == Py_None ? 0 : read_array(k, IN_BIAS, bias, "bias", "(D,)", 1, shape);
}

static int read_activation(Call *k, PyObject *activation)
{
    static const char *const words[] = {"silu", "swish", NULL}; /* of the same function */
    k->c.silu = activation != Py_None;
    return k->c.silu && fwm_word(activation, "activation", words, "None, 'silu' or 'swish'") < 0 ? -1 : 0;
}

static int read_inputs(Call *k, PyObject *const *filter, PyObject *initial_state, PyObject *cu_seqlens)
{
    if (read_x(k, filter[0]) < 0 || read_filters(k, filter[1], filter[2]) < 0 || read_activation(k, filter[3]) < 0 ||
        fwm_read_sequences(&k->sequences, cu_seqlens, k->x_shape[0], k->x_shape[1]) < 0)
        return -1;
    k->state_shape[0] = k->sequences.n, k->state_shape[1] = (npy_intp)k->c.W - 1, k->state_shape[2] = k->x_shape[2];
    if (read_state(k, IN_STATE, initial_state, "initial_state") < 0)
        return -1;
    const void **const arrays[] = {&k->c.x, &k->c.weight, &k->c.bias, &k->c.initial_state};
    for (int i = 0; i < N_GRADIENTS; i++)
        *arrays[i] = fwm_data(k->inputs[i]);
    return 0;
}

/* Where each sequence begins. Without tokens and without states, there might as well be none. */
static int place_sequences(Call *k)
{
    const bool has_states = k->c.initial_state || k->c.final_state || k->c.dfinal_state;
    if (k->x_shape[1] == 0 && !has_states)
        k->sequences.n = 0;
    if (fwm_make_offsets(&k->sequences, k->x_shape[1]) < 0)
        return -1;
    k->c.n_sequences = (size_t)k->sequences.n;
    k->c.offsets = k->sequences.offsets;
    return 0;
}

/* ---- forward ---- */

/* Apart from all inputs; only a state may be the initial one, if it is all of it. */
static int check_apart_from_inputs(const Call *k, PyArrayObject *out, const char *name)
{
    for (int i = 0; i < N_GRADIENTS; i++) {
        const bool in_place =
            i == IN_STATE && out == k->state && k->inputs[i] && PyArray_DATA(out) == PyArray_DATA(k->inputs[i]);
        if (k->inputs[i] && !in_place && fwm_check_apart(out, name, k->came[i], input_names[i]) < 0)
            return -1;
    }
    return 0;
}

/* y, or a tuple (y, state). */
static int read_out(Call *k, PyObject *out)
{
    PyObject *state = NULL;
    const char *name = "out";
    if (PyTuple_Check(out)) {
        if (fwm_check_pair(out, "out", "an array y, or a tuple (y, state)") < 0)
            return -1;
        state = PyTuple_GET_ITEM(out, 1);
        out = PyTuple_GET_ITEM(out, 0);
        name = "out[0]";
    }
    k->y = fwm_output_array(out, name, k->type, "x", "(B, T, D)", 3, k->x_shape);
    if (!k->y || check_apart_from_inputs(k, k->y, name) < 0)
        return -1;
    if (!state)
        return 0;
    k->state = fwm_output_array(state, "out[1]", k->type, "x", state_letters(k), 3, k->state_shape);
    if (!k->state || check_apart_from_inputs(k, k->state, "out[1]") < 0)
        return -1;
    return fwm_check_apart(k->y, "out[0]", k->state, "out[1]");
}

static int forward(Call *k, bool output_final_state)
{
    if (!k->y && !(k->y = (PyArrayObject *)PyArray_SimpleNew(3, k->x_shape, k->type)))
        return -1;
    if (output_final_state && !k->state && !(k->state = (PyArrayObject *)PyArray_SimpleNew(3, k->state_shape, k->type)))
        return -1;
    k->c.y = PyArray_DATA(k->y);
    k->c.final_state = fwm_data(k->state);
    return place_sequences(k) < 0 ? -1 : fwm_run(&k->kernels->convolution, &k->kernels->convolution.forward, &k->c);
}

/* args: x, weight, bias, activation, initial_state, output_final_state, cu_seqlens, out. */
PyObject *fwm_py_convolution_forward(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    Call k = {0};
    PyObject *result = NULL;
    bool output_final_state;
    if (fwm_check_count("convolution_forward", n_args, 8) < 0)
        return NULL;
    if (read_inputs(&k, args, args[4], args[6]) == 0 &&
        fwm_flag(args[5], "output_final_state", &output_final_state) == 0 &&
        (args[7] == Py_None || read_out(&k, args[7]) == 0) && forward(&k, output_final_state) == 0)
        result = PyTuple_Pack(2, (PyObject *)k.y, k.state ? (PyObject *)k.state : Py_None);
    release(&k);
    return result;
}

/* ---- backward ---- */

static int make_gradients(Call *k, PyObject *out)
{
    const FwmInputs inputs = {N_INPUTS, k->inputs, k->came, input_names};
    if (fwm_gradient_arrays(inputs, out, N_GRADIENTS, k->gradients) < 0)
        return -1;
    void **const pointers[] = {&k->c.dx, &k->c.dweight, &k->c.dbias, &k->c.dinitial_state};
    for (int i = 0; i < N_GRADIENTS; i++)
        *pointers[i] = fwm_data(k->gradients[i]);
    return 0;
}

static int backward(Call *k, PyObject *out)
{
    if (make_gradients(k, out) < 0 || place_sequences(k) < 0)
        return -1;
    return fwm_run(&k->kernels->convolution, &k->kernels->convolution.backward, &k->c);
}

/* args: dy, x, weight, bias, activation, initial_state, cu_seqlens, dfinal_state, out. */
PyObject *fwm_py_convolution_backward(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    Call k = {0};
    PyObject *result = NULL;
    if (fwm_check_count("convolution_backward", n_args, 9) < 0)
        return NULL;
    if (read_inputs(&k, args + 1, args[5], args[6]) == 0 &&
        read_array(&k, IN_DY, args[0], "dy", "(B, T, D)", 3, k.x_shape) == 0 &&
        read_state(&k, IN_DSTATE, args[7], "dfinal_state") == 0) {
        k.c.dy = PyArray_DATA(k.inputs[IN_DY]);
        k.c.dfinal_state = fwm_data(k.inputs[IN_DSTATE]);
        result = backward(&k, args[8]) == 0 ? fwm_array_tuple(N_GRADIENTS, k.gradients) : NULL;
    }
    release(&k);
    return result;
}
