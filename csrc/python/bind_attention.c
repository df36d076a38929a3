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
#include "python/scratch.h"
#include "runtime/threads.h"

enum { N_READ = 6 }; /* q, k, v, do, o, lse */

typedef struct {
    const FwmKernels *kernels;
    FwmAttention a;
    int type;
    npy_intp o_shape[4], lse_shape[3];
    PyArrayObject *q, *k, *v, *o, *lse, *dout, *dq, *dk, *dv;
} AttentionCall;

static void release(AttentionCall *c)
{
    PyArrayObject *const all[] = {c->q, c->k, c->v, c->o, c->lse, c->dout, c->dq, c->dk, c->dv};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        Py_XDECREF(all[i]);
}

static int check_sizes(const FwmAttention *a)
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

static int read_inputs(AttentionCall *c, PyObject *q, PyObject *k, PyObject *v, PyObject *causal, PyObject *scale)
{
    FwmAttention *a = &c->a;
    const npy_intp any[] = {-1, -1, -1, -1};
    c->q = fwm_real_array(q, "q", 0, NULL);
    if (!c->q || fwm_check_shape(c->q, "q", "(B, T, HQ, K)", 4, any) < 0)
        return -1;
    c->type = PyArray_TYPE(c->q);
    c->kernels = fwm_kernels_for(c->q);
    const npy_intp *of_q = PyArray_DIMS(c->q);
    const npy_intp k_shape[] = {of_q[0], -1, -1, of_q[3]};
    c->k = fwm_real_array(k, "k", c->type, "q");
    if (!c->k || fwm_check_shape(c->k, "k", "(B, S, H, K)", 4, k_shape) < 0)
        return -1;
    const npy_intp *of_k = PyArray_DIMS(c->k);
    const npy_intp v_shape[] = {of_k[0], of_k[1], of_k[2], -1};
    c->v = fwm_real_array(v, "v", c->type, "q");
    if (!c->v || fwm_check_shape(c->v, "v", "(B, S, H, V)", 4, v_shape) < 0)
        return -1;
    a->B = (size_t)of_q[0], a->T = (size_t)of_q[1], a->HQ = (size_t)of_q[2], a->K = (size_t)of_q[3];
    a->S = (size_t)of_k[1], a->H = (size_t)of_k[2], a->V = (size_t)PyArray_DIM(c->v, 3);
    a->q = PyArray_DATA(c->q), a->k = PyArray_DATA(c->k), a->v = PyArray_DATA(c->v);
    for (int i = 0; i < 3; i++)
        c->o_shape[i] = c->lse_shape[i] = of_q[i];
    c->o_shape[3] = (npy_intp)a->V;
    if (fwm_flag(causal, "causal", &a->causal) < 0 || check_sizes(a) < 0)
        return -1;
    a->scale = 1 / sqrt((double)a->K);
    return scale == Py_None ? 0 : fwm_finite_number(scale, "scale", c->type, &a->scale);
}

/* The array given to write into, or a new one. */
static int read_out(AttentionCall *c, PyObject *out, PyObject *const inputs[3])
{
    static const char *const names[] = {"q", "k", "v"};
    c->o = out == Py_None ? (PyArrayObject *)PyArray_SimpleNew(4, c->o_shape, c->type)
                          : fwm_output_array(out, "out", c->type, "q", "(B, T, HQ, V)", 4, c->o_shape);
    for (size_t i = 0; c->o && out != Py_None && i < 3; i++)
        if (PyArray_Check(inputs[i]) && fwm_check_apart(c->o, "out", (PyArrayObject *)inputs[i], names[i]) < 0)
            return -1;
    return c->o ? 0 : -1;
}

static int run(AttentionCall *c, size_t (*scratch_of)(const FwmAttention *, int), void (*kernel)(const FwmAttention *, int, void *))
{
    const int threads = fwm_num_threads();
    size_t stride;
    void *scratch = fwm_scratch(1, scratch_of(&c->a, threads), &stride);
    if (!scratch)
        return -1;
    Py_BEGIN_ALLOW_THREADS
    kernel(&c->a, threads, scratch);
    Py_END_ALLOW_THREADS
    fwm_release_scratch(scratch);
    return 0;
}

static bool has_work(const FwmAttention *a)
{
    return a->B > 0 && a->T > 0;
}

static int forward(AttentionCall *c, int with_lse)
{
    if (with_lse && !(c->lse = (PyArrayObject *)PyArray_SimpleNew(3, c->lse_shape, c->type)))
        return -1;
    c->a.o = PyArray_DATA(c->o);
    c->a.lse = fwm_data(c->lse);
    return has_work(&c->a) ? run(c, c->kernels->attention.forward_scratch, c->kernels->attention.forward) : 0;
}

PyObject *fwm_py_attention_forward(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *q, *k, *v, *causal, *scale, *out, *result = NULL;
    int with_lse;
    if (!PyArg_ParseTuple(args, "OOOOOpO:attention_forward", &q, &k, &v, &causal, &scale, &with_lse, &out))
        return NULL;
    AttentionCall c = {0};
    PyObject *const inputs[] = {q, k, v};
    if (read_inputs(&c, q, k, v, causal, scale) == 0 && read_out(&c, out, inputs) == 0 && forward(&c, with_lse) == 0)
        result = with_lse ? PyTuple_Pack(2, (PyObject *)c.o, (PyObject *)c.lse) : Py_NewRef((PyObject *)c.o);
    release(&c);
    return result;
}

/* What the forward gave, both or neither. */
static int read_results(AttentionCall *c, PyObject *o, PyObject *lse)
{
    if ((o == Py_None) != (lse == Py_None)) {
        PyErr_Format(PyExc_ValueError, "%s: got None, expected an array, because %s is given", o == Py_None ? "o" : "lse",
                     o == Py_None ? "lse" : "o");
        return -1;
    }
    if (o == Py_None)
        return 0;
    c->o = fwm_real_array(o, "o", c->type, "q");
    if (!c->o || fwm_check_shape(c->o, "o", "(B, T, HQ, V)", 4, c->o_shape) < 0)
        return -1;
    c->lse = fwm_real_array(lse, "lse", c->type, "q");
    if (!c->lse || fwm_check_shape(c->lse, "lse", "(B, T, HQ)", 3, c->lse_shape) < 0)
        return -1;
    c->a.o = PyArray_DATA(c->o), c->a.lse = PyArray_DATA(c->lse);
    return 0;
}

static int read_dout(AttentionCall *c, PyObject *dout)
{
    c->dout = fwm_real_array(dout, "do", c->type, "q");
    if (!c->dout || fwm_check_shape(c->dout, "do", "(B, T, HQ, V)", 4, c->o_shape) < 0)
        return -1;
    c->a.dout = PyArray_DATA(c->dout);
    return 0;
}

/* dq, dk and dv, all zeros: new, or those of out. came: what they must not overlap. */
static int make_gradients(AttentionCall *c, PyObject *out, PyObject *const came[N_READ])
{
    static const char *const read_names[] = {"q", "k", "v", "do", "o", "lse"}, *const names[] = {"out[0]", "out[1]", "out[2]"};
    PyArrayObject *const inputs[] = {c->q, c->k, c->v}, **const gradients[] = {&c->dq, &c->dk, &c->dv};
    void **const numbers[] = {&c->a.dq, &c->a.dk, &c->a.dv};
    FwmNamedArray others[N_READ + 3];
    size_t n = 0;
    if (out != Py_None && fwm_check_gradients(out, 3) < 0)
        return -1;
    for (size_t i = 0; i < N_READ; i++)
        if (PyArray_Check(came[i]))
            others[n++] = (FwmNamedArray){(PyArrayObject *)came[i], read_names[i]};
    for (Py_ssize_t i = 0; i < 3; i++) {
        *gradients[i] = fwm_array_like(out == Py_None ? NULL : PyTuple_GET_ITEM(out, i), names[i], inputs[i], "q", others, n);
        if (!*gradients[i])
            return -1;
        others[n++] = (FwmNamedArray){*gradients[i], names[i]};
        *numbers[i] = PyArray_DATA(*gradients[i]);
        memset(*numbers[i], 0, (size_t)PyArray_NBYTES(*gradients[i]));
    }
    return 0;
}

static int backward(AttentionCall *c)
{
    return has_work(&c->a) ? run(c, c->kernels->attention.backward_scratch, c->kernels->attention.backward) : 0;
}

PyObject *fwm_py_attention_backward(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *dout, *q, *k, *v, *causal, *scale, *o, *lse, *out, *result = NULL;
    if (!PyArg_ParseTuple(args, "OOOOOOOOO:attention_backward", &dout, &q, &k, &v, &causal, &scale, &o, &lse, &out))
        return NULL;
    AttentionCall c = {0};
    PyObject *const came[N_READ] = {q, k, v, dout, o, lse};
    if (read_inputs(&c, q, k, v, causal, scale) == 0 && read_dout(&c, dout) == 0 && read_results(&c, o, lse) == 0 &&
        make_gradients(&c, out, came) == 0 && backward(&c) == 0)
        result = PyTuple_Pack(3, (PyObject *)c.dq, (PyObject *)c.dk, (PyObject *)c.dv);
    release(&c);
    return result;
}
