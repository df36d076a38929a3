/* fwm_py.kernels: memory_forward, memory_backward. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include "python/args.h"
#include "python/bind_memory.h"
#include "python/memory_args.h"
#include "runtime/scratch.h"
#include "api/dispatch.h"
#include "runtime/threads.h"

/* Without tokens there is work for the states only, and without sequences none. */
static int run(FwmMemoryCall *c, const FwmPass *pass)
{
    const FwmRuleCall *m = &c->m;
    const bool has_states = m->initial_state || m->final_state || m->dfinal_state;
    if (c->sequences.n == 0 || (c->T == 0 && !has_states))
        return 0;
    if (fwm_make_offsets(&c->sequences, c->T) < 0)
        return -1;
    c->m.offsets = c->sequences.offsets;
    return fwm_run(&c->kernels->rule, pass, m);
}

static PyArrayObject *new_array(const FwmMemoryCall *c, int rank, const npy_intp *shape)
{
    return (PyArrayObject *)PyArray_SimpleNew(rank, shape, c->type);
}

/* ---- forward ---- */

/* Arrays for what out has not given. */
static int make_outputs(FwmMemoryCall *c, bool output_final_state)
{
    npy_intp o[4], state[4], sum[3];
    fwm_memory_shapes(c, o, state, sum);
    if (!c->o && !(c->o = new_array(c, 4, o)))
        return -1;
    if (output_final_state && !c->state) {
        c->state = new_array(c, 4, state);
        c->sum = c->state && c->m.normalize ? new_array(c, 3, sum) : NULL;
        if (!c->state || (c->m.normalize && !c->sum))
            return -1;
    }
    c->m.o = PyArray_DATA(c->o);
    c->m.final_state = fwm_data(c->state);
    c->m.final_sum = fwm_data(c->sum);
    return 0;
}

/* (o, final_state), the latter None, S or (S, z). */
static PyObject *outputs(const FwmMemoryCall *c)
{
    if (!c->sum)
        return PyTuple_Pack(2, c->o, c->state ? (PyObject *)c->state : Py_None);
    PyObject *pair = PyTuple_Pack(2, c->state, c->sum);
    PyObject *out = pair ? PyTuple_Pack(2, c->o, pair) : NULL;
    Py_XDECREF(pair);
    return out;
}

/* args: function, the common ones, output_final_state, out. */
PyObject *fwm_py_memory_forward(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    FwmMemoryCall c = {.reads_once = true};
    PyObject *out = NULL;
    if (fwm_check_count("memory_forward", n_args, N_COMMON_ARGS + 3) < 0)
        return NULL;
    PyObject *const output_final_state = args[N_COMMON_ARGS + 1];
    if (!PyBool_Check(output_final_state))
        return PyErr_Format(PyExc_TypeError, "output_final_state: got %.100s, expected True or False",
                            Py_TYPE(output_final_state)->tp_name);
    if (fwm_read_memory(&c, args[0], args + 1) == 0 && fwm_read_memory_out(&c, args[N_COMMON_ARGS + 2]) == 0 &&
        make_outputs(&c, output_final_state == Py_True) == 0 && run(&c, &c.kernels->rule.forward) == 0)
        out = outputs(&c);
    fwm_release_memory(&c);
    return out;
}

/* ---- backward ---- */

/* (dq, dk, dv, dg, dbeta, db, dw, dinitial_state), None where there is no such input; the last may be a pair. */
static PyObject *gradient_tuple(PyArrayObject *const gradients[N_GRADIENTS])
{
    PyObject *tuple = PyTuple_New(IN_STATE + 1);
    for (int i = 0; tuple && i <= IN_STATE; i++)
        PyTuple_SET_ITEM(tuple, i, Py_NewRef(gradients[i] ? (PyObject *)gradients[i] : Py_None));
    if (tuple && gradients[IN_SUM]) {
        PyObject *pair = PyTuple_Pack(2, gradients[IN_STATE], gradients[IN_SUM]);
        if (pair) {
            Py_DECREF(gradients[IN_STATE]);
            PyTuple_SET_ITEM(tuple, IN_STATE, pair);
        } else {
            Py_CLEAR(tuple);
        }
    }
    return tuple;
}

/* args: function, do, dfinal_state, the common ones, out. */
PyObject *fwm_py_memory_backward(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t n_args)
{
    FwmMemoryCall c = {0};
    PyArrayObject *gradients[N_GRADIENTS] = {NULL};
    PyObject *out = NULL;
    if (fwm_check_count("memory_backward", n_args, N_COMMON_ARGS + 4) < 0)
        return NULL;
    if (fwm_read_memory(&c, args[0], args + 3) == 0 && fwm_read_memory_gradients(&c, args[1], args[2]) == 0 &&
        fwm_memory_gradients(&c, args[N_COMMON_ARGS + 3], gradients) == 0 && run(&c, &c.kernels->rule.backward) == 0)
        out = gradient_tuple(gradients);
    for (int i = 0; i < N_GRADIENTS; i++)
        Py_XDECREF(gradients[i]);
    fwm_release_memory(&c);
    return out;
}

/* ---- the table ---- */

static PyObject *row_of(const FwmRuleInfo *info)
{
    static const char *const strengths[] = {
        [FWM_NO_STRENGTH] = "", [FWM_BETA] = "beta", [FWM_ERASE_AND_WRITE] = "b, w"};
    const bool flags[] = {info->scalar_gate, info->channel_gate, info->normalizes, info->has_qk_norm, info->clamps};
    PyObject *f[5];
    for (int i = 0; i < 5; i++)
        f[i] = flags[i] ? Py_True : Py_False;
    return Py_BuildValue("{s:s,s:O,s:O,s:s,s:O,s:O,s:O,s:s}", "function", info->function, "scalar_gate", f[0],
                         "channel_gate", f[1], "strength", strengths[info->strength], "normalizes", f[2], "has_qk_norm",
                         f[3], "clamps", f[4], "summary", info->summary);
}

int fwm_add_memory_table(PyObject *module)
{
    PyObject *list = PyList_New(0);
    int status = list ? 0 : -1;
    const FwmRuleInfo *info;
    for (size_t i = 0; status == 0 && (info = fwm_kernels_f32()->rule_info(i)); i++) {
        PyObject *row = row_of(info);
        status = row ? PyList_Append(list, row) : -1;
        Py_XDECREF(row);
    }
    PyObject *tuple = status == 0 ? PyList_AsTuple(list) : NULL;
    status = tuple ? PyModule_AddObjectRef(module, "KERNELS", tuple) : -1;
    Py_XDECREF(tuple);
    Py_XDECREF(list);
    return status;
}
