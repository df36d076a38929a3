/* fwm_py._core: what the Python modules of the package stand on. Chooses the variant of the kernels at import. */
#define FWM_IMPORTS_NUMPY_API
#include "python/numpy_api.h"

#include <stdlib.h>

#include "api/dispatch.h"
#include "python/bindings.h"
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

static PyObject *set_threads(PyObject *given, int least, void (*set)(int))
{
    long long n;
    return fwm_integer(given, "n", least, MOST_THREADS, &n) < 0 ? NULL : (set((int)n), Py_NewRef(Py_None));
}

static PyObject *set_num_threads(PyObject *Py_UNUSED(module), PyObject *given)
{
    return set_threads(given, 1, fwm_set_num_threads);
}

static PyObject *get_num_threads(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(args))
{
    return PyLong_FromLong(fwm_num_threads());
}

/* For fwm_py.torch, whose calls take the number that PyTorch has. */
static PyObject *set_threads_here(PyObject *Py_UNUSED(module), PyObject *given)
{
    return set_threads(given, 0, fwm_set_threads_here);
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
    FwmBinding *const operations[] = {&fwm_map,       &fwm_rule,        &fwm_noncausal,          &fwm_readout,
                                      &fwm_attention, &fwm_convolution, &fwm_convolution_update, &fwm_norm};
    for (size_t i = 0; i < FWM_LENGTH(operations); i++)
        if (fwm_add_operation(module, operations[i]) < 0)
            return -1;
    const bool failed = fwm_add_tables(module) < 0 || fwm_add_function(module, &fwm_map_features) < 0 ||
                        fwm_add_function(module, &fwm_tensor_array) < 0 ||
                        fwm_add_function(module, &fwm_tensor_arrays) < 0 ||
                        fwm_add_function(module, &fwm_plain_tensors) < 0 || fwm_add_random(module) < 0 ||
                        fwm_add_stream(module) < 0 || fwm_add_model(module) < 0;
    return failed ? -1 : 0;
}

static PyMethodDef functions[] = {
    {"build_info", build_info, METH_NOARGS,
     "build_info()\n--\n\nHow the extension was built and what it uses here.\n\n"
     "Returns\n-------\ndict\n"
     "    variant: the instruction set in use (baseline, avx2, avx512 or avx512_bf16); FWM_PY_ISA in the environment "
     "chooses\n"
     "    another at import. variants: those that this build has and this processor runs. compiler: its version.\n"
     "    openmp: whether threads are built in. threads: how many are used.\n"},
    {"set_num_threads", set_num_threads, METH_O,
     "set_num_threads(n, /)\n--\n\n"
     "Use at most n threads (1..1024) from now on. Results do not depend on it, to the bit.\n\n"
     "The default is the number of cores this process may use, at most OMP_NUM_THREADS. Without OpenMP, and in a\n"
     "child that was forked, there is one thread.\n\n"
     "Raises\n------\nTypeError, ValueError\n    If n is no integer, or outside 1..1024.\n"},
    {"get_num_threads", get_num_threads, METH_NOARGS, "get_num_threads()\n--\n\nHow many threads are used at most.\n"},
    {"set_threads_here", set_threads_here, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED}, /* what threads share is atomic, or claimed by one of them (objects.h) */
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
