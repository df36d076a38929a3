/* fwm_py.norm: norm_forward, norm_backward. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include "python/args.h"
#include "python/bind_norm.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

/* The arrays of a call. In the backward, those up to gate have gradients, in the same order. */
typedef enum { IN_X, IN_WEIGHT, IN_GATE, IN_DY, N_INPUTS } Input;
#define N_GRADIENTS (IN_GATE + 1)

typedef struct {
    const FwmKernels *kernels;
    FwmNormCall c;
    int type;
    PyArrayObject *inputs[N_INPUTS];           /* as the kernel reads them; NULL where there is none */
    PyArrayObject *came[N_INPUTS];             /* as they came: what an out must not overlap */
    PyArrayObject *y, *gradients[N_GRADIENTS]; /* NULL for inputs that there are not */
} Call;

static const char *const input_names[N_INPUTS] = {"x", "weight", "gate", "dy"};

static void release(Call *k)
{
    for (int i = 0; i < N_INPUTS; i++) {
        Py_XDECREF(k->inputs[i]);
        Py_XDECREF(k->came[i]);
    }
    for (int i = 0; i < N_GRADIENTS; i++)
        Py_XDECREF(k->gradients[i]);
    Py_XDECREF(k->y);
}

/* ---- inputs ---- */

static int read_array(Call *k, Input which, PyObject *given)
{
    k->inputs[which] = fwm_real_input(given, input_names[which], k->type, "x", &k->came[which]);
    return k->inputs[which] ? 0 : -1;
}

static int read_x(Call *k, PyObject *given)
{
    if (read_array(k, IN_X, given) < 0)
        return -1;
    PyArrayObject *x = k->inputs[IN_X];
    const int rank = PyArray_NDIM(x);
    const npy_intp D = rank ? PyArray_DIM(x, rank - 1) : 0;
    if (D == 0) {
        PyErr_Format(PyExc_ValueError, "x: got %s, expected (..., D) with D at least 1",
                     rank ? "rows of no numbers" : "a number");
        return -1;
    }
    k->type = PyArray_TYPE(x);
    k->kernels = fwm_kernels_for(x);
    k->c.D = (size_t)D;
    k->c.rows = (size_t)(PyArray_SIZE(x) / D);
    return 0;
}

static int read_like_x(Call *k, Input which, PyObject *given)
{
    PyArrayObject *x = k->inputs[IN_X];
    return read_array(k, which, given) < 0 ? -1
                                           : fwm_check_shape(k->inputs[which], input_names[which], "(..., D), as x has",
                                                             PyArray_NDIM(x), PyArray_DIMS(x));
}

static int read_weight(Call *k, PyObject *given)
{
    const npy_intp shape[] = {(npy_intp)k->c.D};
    return read_array(k, IN_WEIGHT, given) < 0 ? -1 : fwm_check_shape(k->inputs[IN_WEIGHT], "weight", "(D,)", 1, shape);
}

static int read_gate(Call *k, PyObject *gate, PyObject *activation)
{
    static const char *const words[] = {"sigmoid", "silu", "swish", NULL}; /* the last two of the same function */
    const int word = fwm_word(activation, "activation", words, "'silu', 'swish' or 'sigmoid'");
    if (word < 0)
        return -1;
    k->c.gating = gate == Py_None ? FWM_UNGATED : word == 0 ? FWM_LOGISTIC_GATE : FWM_SILU_GATE;
    return gate == Py_None ? 0 : read_like_x(k, IN_GATE, gate);
}

static int read_eps(Call *k, PyObject *eps)
{
    if (fwm_finite_number(eps, "eps", k->type, &k->c.eps) < 0)
        return -1;
    if (k->c.eps >= 0)
        return 0;
    PyErr_Format(PyExc_ValueError, "eps: got %.100R, expected a number that is not negative", eps);
    return -1;
}

/* args: x, weight, gate, activation, eps. */
static int read_inputs(Call *k, PyObject *const *args)
{
    if (read_x(k, args[0]) < 0 || read_weight(k, args[1]) < 0 || read_gate(k, args[2], args[3]) < 0 ||
        read_eps(k, args[4]) < 0)
        return -1;
    k->c.x = PyArray_DATA(k->inputs[IN_X]);
    k->c.weight = PyArray_DATA(k->inputs[IN_WEIGHT]);
    k->c.gate = fwm_data(k->inputs[IN_GATE]);
    return 0;
}

/* ---- forward ---- */

static int forward(Call *k, PyObject *out)
{
    FwmNamedArray named[N_INPUTS];
    const size_t n = fwm_name_inputs((FwmInputs){N_INPUTS, k->inputs, k->came, input_names}, named);
    k->y = fwm_array_like(out == Py_None ? NULL : out, "out", k->inputs[IN_X], "x", named, n);
    if (!k->y)
        return -1;
    k->c.y = PyArray_DATA(k->y);
    return fwm_run(&k->kernels->norm, &k->kernels->norm.forward, &k->c);
}

/* args: x, weight, gate, activation, eps, out. */
PyObject *fwm_py_norm_forward(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    Call k = {0};
    PyObject *result = NULL;
    if (fwm_check_count("norm_forward", n_args, 6) < 0)
        return NULL;
    if (read_inputs(&k, args) == 0 && forward(&k, args[5]) == 0)
        result = Py_NewRef((PyObject *)k.y);
    release(&k);
    return result;
}

/* ---- backward ---- */

static int make_gradients(Call *k, PyObject *out)
{
    const FwmInputs inputs = {N_INPUTS, k->inputs, k->came, input_names};
    if (fwm_gradient_arrays(inputs, out, N_GRADIENTS, k->gradients) < 0)
        return -1;
    k->c.dx = PyArray_DATA(k->gradients[IN_X]);
    k->c.dweight = PyArray_DATA(k->gradients[IN_WEIGHT]);
    k->c.dgate = fwm_data(k->gradients[IN_GATE]);
    return 0;
}

static int backward(Call *k, PyObject *out)
{
    return make_gradients(k, out) < 0 ? -1 : fwm_run(&k->kernels->norm, &k->kernels->norm.backward, &k->c);
}

/* args: dy, x, weight, gate, activation, eps, out. */
PyObject *fwm_py_norm_backward(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    Call k = {0};
    PyObject *result = NULL;
    if (fwm_check_count("norm_backward", n_args, 7) < 0)
        return NULL;
    if (read_inputs(&k, args + 1) == 0 && read_like_x(&k, IN_DY, args[0]) == 0) {
        k.c.dy = PyArray_DATA(k.inputs[IN_DY]);
        result = backward(&k, args[6]) == 0 ? fwm_array_tuple(N_GRADIENTS, k.gradients) : NULL;
    }
    release(&k);
    return result;
}
