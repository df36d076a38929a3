/* fwm_py.attention: attention_forward, attention_backward. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include <math.h>
#include <string.h>

#include "python/args.h"
#include "python/bind_attention.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

/* The arrays of a call; the first three have gradients. */
typedef enum { IN_Q, IN_K, IN_V, IN_DO, IN_O, IN_LSE, N_INPUTS } Input;
enum { N_GRADIENTS = IN_V + 1 };

typedef struct {
    const FwmKernels *kernels;
    FwmAttentionCall a;
    int type;
    npy_intp o_shape[4], lse_shape[3];
    PyArrayObject *inputs[N_INPUTS]; /* as the kernel reads them; NULL where there is none */
    PyArrayObject *came[N_INPUTS];   /* as they came: what an out must not overlap */
    PyArrayObject *o, *lse;          /* of the forward */
    PyArrayObject *gradients[N_GRADIENTS];
} AttentionCall;

static const char *const input_names[N_INPUTS] = {"q", "k", "v", "do", "o", "lse"};

static void release(AttentionCall *c)
{
    for (int i = 0; i < N_INPUTS; i++) {
        Py_XDECREF(c->inputs[i]);
        Py_XDECREF(c->came[i]);
    }
    for (int i = 0; i < N_GRADIENTS; i++)
        Py_XDECREF(c->gradients[i]);
    Py_XDECREF(c->o);
    Py_XDECREF(c->lse);
}

static int check_sizes(const FwmAttentionCall *a)
{
    if (a->HQ == 0 || a->K == 0)
        PyErr_SetString(PyExc_ValueError, "q: got no heads or no features, expected at least one of each");
    else if (a->H == 0)
        PyErr_SetString(PyExc_ValueError, "k: got no heads, expected at least one");
    else if (a->V == 0)
        PyErr_SetString(PyExc_ValueError, "v: got no features, expected at least one");
    else if (a->HQ % a->H != 0)
        PyErr_Format(PyExc_ValueError, "q: got %zu heads, expected a multiple of the %zu of k", a->HQ, a->H);
    else if (a->causal && a->S < a->T)
        PyErr_Format(PyExc_ValueError, "k: got %zu tokens, expected at least the %zu of q, because causal", a->S, a->T);
    else if (a->S == 0 && a->T > 0)
        PyErr_Format(PyExc_ValueError, "k: got no tokens, expected at least one for the %zu of q", a->T);
    else
        return 0;
    return -1;
}

static PyArrayObject *read_array(AttentionCall *c, Input which, PyObject *given, const char *letters, int rank,
                                 const npy_intp *shape)
{
    PyArrayObject *array = c->inputs[which] = fwm_real_input(given, input_names[which], c->type, "q", &c->came[which]);
    return array && fwm_check_shape(array, input_names[which], letters, rank, shape) == 0 ? array : NULL;
}

static int read_inputs(AttentionCall *c, PyObject *q, PyObject *k, PyObject *v, PyObject *causal, PyObject *scale)
{
    FwmAttentionCall *a = &c->a;
    const npy_intp any[] = {-1, -1, -1, -1};
    if (!read_array(c, IN_Q, q, "(B, T, HQ, K)", 4, any))
        return -1;
    c->type = PyArray_TYPE(c->inputs[IN_Q]);
    c->kernels = fwm_kernels_for(c->inputs[IN_Q]);
    const npy_intp *of_q = PyArray_DIMS(c->inputs[IN_Q]);
    const npy_intp k_shape[] = {of_q[0], -1, -1, of_q[3]};
    if (!read_array(c, IN_K, k, "(B, S, H, K)", 4, k_shape))
        return -1;
    const npy_intp *of_k = PyArray_DIMS(c->inputs[IN_K]);
    const npy_intp v_shape[] = {of_k[0], of_k[1], of_k[2], -1};
    if (!read_array(c, IN_V, v, "(B, S, H, V)", 4, v_shape))
        return -1;
    a->B = (size_t)of_q[0], a->T = (size_t)of_q[1], a->HQ = (size_t)of_q[2], a->K = (size_t)of_q[3];
    a->S = (size_t)of_k[1], a->H = (size_t)of_k[2], a->V = (size_t)PyArray_DIM(c->inputs[IN_V], 3);
    a->q = PyArray_DATA(c->inputs[IN_Q]), a->k = PyArray_DATA(c->inputs[IN_K]), a->v = PyArray_DATA(c->inputs[IN_V]);
    for (int i = 0; i < 3; i++)
        c->o_shape[i] = c->lse_shape[i] = of_q[i];
    c->o_shape[3] = (npy_intp)a->V;
    if (fwm_flag(causal, "causal", &a->causal) < 0 || check_sizes(a) < 0)
        return -1;
    a->scale = 1 / sqrt((double)a->K);
    return scale == Py_None ? 0 : fwm_finite_number(scale, "scale", c->type, &a->scale);
}

/* The array given to write into, or a new one. */
static int read_out(AttentionCall *c, PyObject *out)
{
    c->o = out == Py_None ? (PyArrayObject *)PyArray_SimpleNew(4, c->o_shape, c->type)
                          : fwm_output_array(out, "out", c->type, "q", "(B, T, HQ, V)", 4, c->o_shape);
    for (int i = 0; c->o && out != Py_None && i < N_GRADIENTS; i++)
        if (fwm_check_apart(c->o, "out", c->came[i], input_names[i]) < 0)
            return -1;
    return c->o ? 0 : -1;
}

static bool has_work(const FwmAttentionCall *a)
{
    return a->B > 0 && a->T > 0;
}

static int forward(AttentionCall *c, bool with_lse)
{
    if (with_lse && !(c->lse = (PyArrayObject *)PyArray_SimpleNew(3, c->lse_shape, c->type)))
        return -1;
    c->a.o = PyArray_DATA(c->o);
    c->a.lse = fwm_data(c->lse);
    return has_work(&c->a) ? fwm_run(&c->kernels->attention, &c->kernels->attention.forward, &c->a) : 0;
}

PyObject *fwm_py_attention_forward(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *q, *k, *v, *causal, *scale, *return_lse, *out, *result = NULL;
    bool with_lse;
    if (!PyArg_ParseTuple(args, "OOOOOOO:attention_forward", &q, &k, &v, &causal, &scale, &return_lse, &out) ||
        fwm_flag(return_lse, "return_lse", &with_lse) < 0)
        return NULL;
    AttentionCall c = {0};
    if (read_inputs(&c, q, k, v, causal, scale) == 0 && read_out(&c, out) == 0 && forward(&c, with_lse) == 0)
        result = with_lse ? PyTuple_Pack(2, (PyObject *)c.o, (PyObject *)c.lse) : Py_NewRef((PyObject *)c.o);
    release(&c);
    return result;
}

/* What the forward gave, both or neither. */
static int read_results(AttentionCall *c, PyObject *o, PyObject *lse)
{
    if ((o == Py_None) != (lse == Py_None)) {
        PyErr_Format(PyExc_ValueError, "%s: got None, expected an array, because %s is given",
                     o == Py_None ? "o" : "lse", o == Py_None ? "lse" : "o");
        return -1;
    }
    if (o == Py_None)
        return 0;
    if (!read_array(c, IN_O, o, "(B, T, HQ, V)", 4, c->o_shape) ||
        !read_array(c, IN_LSE, lse, "(B, T, HQ)", 3, c->lse_shape))
        return -1;
    c->a.o = PyArray_DATA(c->inputs[IN_O]), c->a.lse = PyArray_DATA(c->inputs[IN_LSE]);
    return 0;
}

static int read_dout(AttentionCall *c, PyObject *dout)
{
    if (!read_array(c, IN_DO, dout, "(B, T, HQ, V)", 4, c->o_shape))
        return -1;
    c->a.dout = PyArray_DATA(c->inputs[IN_DO]);
    return 0;
}

/* dq, dk and dv, all zeros: new, or those of out. */
static int make_gradients(AttentionCall *c, PyObject *out)
{
    const FwmInputs inputs = {N_INPUTS, c->inputs, c->came, input_names};
    void **const numbers[] = {&c->a.dq, &c->a.dk, &c->a.dv};
    if (fwm_gradient_arrays(inputs, out, N_GRADIENTS, c->gradients) < 0)
        return -1;
    for (int i = 0; i < N_GRADIENTS; i++) {
        *numbers[i] = PyArray_DATA(c->gradients[i]);
        memset(*numbers[i], 0, (size_t)PyArray_NBYTES(c->gradients[i]));
    }
    return 0;
}

static int backward(AttentionCall *c)
{
    return has_work(&c->a) ? fwm_run(&c->kernels->attention, &c->kernels->attention.backward, &c->a) : 0;
}

PyObject *fwm_py_attention_backward(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *dout, *q, *k, *v, *causal, *scale, *o, *lse, *out, *result = NULL;
    if (!PyArg_ParseTuple(args, "OOOOOOOOO:attention_backward", &dout, &q, &k, &v, &causal, &scale, &o, &lse, &out))
        return NULL;
    AttentionCall c = {0};
    if (read_inputs(&c, q, k, v, causal, scale) == 0 && read_dout(&c, dout) == 0 && read_results(&c, o, lse) == 0 &&
        make_gradients(&c, out) == 0 && backward(&c) == 0)
        result = fwm_array_tuple(N_GRADIENTS, c.gradients);
    release(&c);
    return result;
}
