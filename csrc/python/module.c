/* fwm_py._core: what the Python modules of the package stand on. Chooses the variant of the kernels at import. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#include <numpy/arrayobject.h>

#include <stdlib.h>

#include "python/bind_attention.h"
#include "python/bind_convolution.h"
#include "python/bind_maps.h"
#include "python/bind_memory.h"
#include "python/bind_model.h"
#include "python/bind_norm.h"
#include "python/bind_random.h"
#include "python/bind_readouts.h"
#include "python/bind_view.h"
#include "api/dispatch.h"
#include "runtime/threads.h"

#define MOST_THREADS 1024

static PyObject *usable_variants(void)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && fwm_usable_variant(i); i++) {
        PyObject *name = PyUnicode_FromString(fwm_usable_variant(i));
        if (!name || PyList_Append(list, name) < 0)
            Py_CLEAR(list);
        Py_XDECREF(name);
    }
    PyObject *tuple = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return tuple;
}

PyDoc_STRVAR(build_info_doc, "build_info()\n--\n\n"
                             "How the extension was built and what it uses here.\n\n"
                             "Returns\n-------\n"
                             "dict\n"
                             "    variant: the instruction set in use (baseline, avx2 or avx512); FWM_PY_ISA in the "
                             "environment chooses another\n"
                             "    at import. variants: those that this build has and this processor runs. compiler: "
                             "its version. openmp: whether\n"
                             "    threads are built in. threads: how many are used.\n");

static PyObject *build_info(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
#ifdef _OPENMP
    PyObject *openmp = Py_True;
#else
    PyObject *openmp = Py_False;
#endif
    PyObject *variants = usable_variants();
    if (!variants)
        return NULL;
    return Py_BuildValue("{s:s,s:N,s:s,s:O,s:i}", "variant", fwm_kernels_f32()->variant, "variants", variants,
                         "compiler", __VERSION__, "openmp", openmp, "threads", fwm_num_threads());
}

PyDoc_STRVAR(
    set_num_threads_doc,
    "set_num_threads(n, /)\n--\n\n"
    "Use at most n threads (1..1024) from now on. Results do not depend on it, to the bit.\n\n"
    "The default is the number of cores this process may use, at most OMP_NUM_THREADS. Without OpenMP, and in a child\n"
    "that was forked, there is one thread.\n\n"
    "Raises\n------\n"
    "TypeError, ValueError\n"
    "    If n is no integer, or outside 1..1024.\n");

static PyObject *set_num_threads(PyObject *Py_UNUSED(module), PyObject *given)
{
    long long n;
    if (fwm_integer_argument(given, "n", 1, MOST_THREADS, &n) < 0)
        return NULL;
    fwm_set_num_threads((int)n);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(get_num_threads_doc, "get_num_threads()\n--\n\nHow many threads are used at most.\n");

static PyObject *get_num_threads(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    return PyLong_FromLong(fwm_num_threads());
}

/* For fwm_py.torch, whose calls take the number that PyTorch has. */
static PyObject *set_threads_here(PyObject *Py_UNUSED(module), PyObject *given)
{
    long long n;
    if (fwm_integer_argument(given, "n", 0, MOST_THREADS, &n) < 0)
        return NULL;
    fwm_set_threads_here((int)n);
    Py_RETURN_NONE;
}

/* Appends a row, which is taken over, to the list. */
static int append(PyObject *list, PyObject *row)
{
    const int status = row ? PyList_Append(list, row) : -1;
    Py_XDECREF(row);
    return status;
}

/* The list becomes a tuple of the module. */
static int add_table(PyObject *module, const char *name, PyObject *list)
{
    PyObject *tuple = PyList_AsTuple(list);
    const int status = tuple ? PyModule_AddObjectRef(module, name, tuple) : -1;
    Py_XDECREF(tuple);
    return status;
}

static int add_maps(PyObject *module)
{
    PyObject *list = PyList_New(0);
    int status = list ? 0 : -1;
    const FwmMapInfo *info;
    for (size_t i = 0; status == 0 && (info = fwm_kernels_f32()->map_info(i)); i++)
        status = append(list, Py_BuildValue("{s:s,s:s,s:s,s:s}", "name", info->name, "function", info->function,
                                            "argument", info->argument, "summary", info->summary));
    if (status == 0)
        status = add_table(module, "MAPS", list);
    Py_XDECREF(list);
    return status;
}

static int add_rules(PyObject *module)
{
    PyObject *list = PyList_New(0);
    int status = list ? 0 : -1;
    const FwmReadoutInfo *info;
    for (size_t i = 0; status == 0 && (info = fwm_kernels_f32()->readout_info(i)); i++)
        status = append(list, Py_BuildValue("{s:s,s:s,s:O,s:O,s:s}", "name", info->name, "function", info->function,
                                            "uses_map", info->uses_map ? Py_True : Py_False, "uses_beta",
                                            info->uses_beta ? Py_True : Py_False, "summary", info->summary));
    if (status == 0)
        status = add_table(module, "RULES", list);
    Py_XDECREF(list);
    return status;
}

/* pip shows nothing of what a build that succeeds has warned of. */
static int warn_of_one_thread(void)
{
#ifdef FWM_OPENMP_MISSING
    return PyErr_WarnEx(
        PyExc_RuntimeWarning,
        "fwm_py was built by a compiler without OpenMP and uses one thread. For more, install OpenMP's library (gcc: "
        "libgomp; clang: libomp) and build again; for one thread without this warning build with FWM_PY_NO_OPENMP=1",
        1);
#else
    return 0;
#endif
}

static int execute(PyObject *module)
{
    if (PyArray_ImportNumPyAPI() < 0)
        return -1;
    char message[256];
    const char *wanted = getenv("FWM_PY_ISA");
    if (!fwm_choose_variant(wanted && wanted[0] ? wanted : NULL, message, sizeof message)) {
        PyErr_SetString(PyExc_ImportError, message);
        return -1;
    }
    if (warn_of_one_thread() < 0)
        return -1;
    fwm_threads_start();
    return add_maps(module) < 0 || add_rules(module) < 0 || fwm_add_memory_table(module) < 0 ||
                   fwm_add_random_types(module) < 0 || fwm_add_model_type(module) < 0
               ? -1
               : 0;
}

static PyMethodDef functions[] = {
    {"build_info", build_info, METH_NOARGS, build_info_doc},
    {"set_num_threads", set_num_threads, METH_O, set_num_threads_doc},
    {"get_num_threads", get_num_threads, METH_NOARGS, get_num_threads_doc},
    {"set_threads_here", set_threads_here, METH_O, NULL},
    {"map_forward", fwm_py_map_forward, METH_VARARGS, NULL},
    {"map_backward", fwm_py_map_backward, METH_VARARGS, NULL},
    {"draw_omega", fwm_py_draw_omega, METH_VARARGS, NULL},
    {"rule_forward", fwm_py_rule_forward, METH_VARARGS, NULL},
    {"rule_backward", fwm_py_rule_backward, METH_VARARGS, NULL},
    {"memory_forward", (PyCFunction)(void (*)(void))fwm_py_memory_forward, METH_FASTCALL, NULL},
    {"memory_backward", (PyCFunction)(void (*)(void))fwm_py_memory_backward, METH_FASTCALL, NULL},
    {"attention_forward", fwm_py_attention_forward, METH_VARARGS, NULL},
    {"attention_backward", fwm_py_attention_backward, METH_VARARGS, NULL},
    {"convolution_forward", (PyCFunction)(void (*)(void))fwm_py_convolution_forward, METH_FASTCALL, NULL},
    {"convolution_backward", (PyCFunction)(void (*)(void))fwm_py_convolution_backward, METH_FASTCALL, NULL},
    {"norm_forward", (PyCFunction)(void (*)(void))fwm_py_norm_forward, METH_FASTCALL, NULL},
    {"norm_backward", (PyCFunction)(void (*)(void))fwm_py_norm_backward, METH_FASTCALL, NULL},
    {"array_at", (PyCFunction)(void (*)(void))fwm_py_array_at, METH_FASTCALL, NULL},
    {"train", fwm_py_train, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* what threads share is atomic, or claimed by one of them (bind_random.h) */
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,  .m_name = "fwm_py._core", .m_doc = "The C core of fwm_py.",
    .m_methods = functions, .m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&definition);
}
