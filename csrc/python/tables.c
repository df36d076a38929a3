#include "python/tables.h"

#include "api/dispatch.h"
#include "python/bindings.h"

/* ---- rows by name ---- */

static Py_ssize_t refuse(PyObject *given, const char *argument, const char *expected)
{
    if (PyUnicode_Check(given))
        PyErr_Format(PyExc_ValueError, "%s: got %R, expected the name of %s", argument, given, expected);
    else
        PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected a string", argument, Py_TYPE(given)->tp_name);
    return -1;
}

static bool is_called(PyObject *given, const char *function, const char *name)
{
    return PyUnicode_CompareWithASCIIString(given, function) == 0 || PyUnicode_CompareWithASCIIString(given, name) == 0;
}

Py_ssize_t fwm_find_map(PyObject *name, const char *argument)
{
    const FwmMapInfo *info;
    for (size_t row = 0; PyUnicode_Check(name) && (info = fwm_kernels_f32()->map_info(row)); row++)
        if (is_called(name, info->function, info->name))
            return (Py_ssize_t)row;
    return refuse(name, argument, "a feature map");
}

Py_ssize_t fwm_find_rule(PyObject *name, const char *argument)
{
    const FwmRuleInfo *info;
    for (size_t row = 0; PyUnicode_Check(name) && (info = fwm_kernels_f32()->rule_info(row)); row++)
        if (is_called(name, info->function, info->name))
            return (Py_ssize_t)row;
    return refuse(name, argument, "a function of fwm_py.rules");
}

Py_ssize_t fwm_find_readout(PyObject *name, const char *argument)
{
    const FwmReadoutInfo *info;
    for (size_t row = 0; PyUnicode_Check(name) && (info = fwm_kernels_f32()->readout_info(row)); row++)
        if (is_called(name, info->function, info->name))
            return (Py_ssize_t)row;
    return refuse(name, argument, "an update rule");
}

/* ---- as Python sees them ---- */

static PyObject *truth(bool value)
{
    return value ? Py_True : Py_False;
}

static PyObject *map_row(size_t i)
{
    const FwmMapInfo *info = fwm_kernels_f32()->map_info(i);
    return info ? Py_BuildValue("{s:s,s:s,s:s,s:O,s:O,s:s}", "name", info->name, "function", info->function, "argument",
                                info->argument, "positive", truth(info->positive), "takes_omega",
                                truth(info->takes_omega), "summary", info->summary)
                : NULL;
}

static PyObject *rule_row(size_t i)
{
    static const char *const strengths[] = {
        [FWM_NO_STRENGTH] = "", [FWM_BETA] = "beta", [FWM_ERASE_AND_WRITE] = "b, w"};
    const FwmRuleInfo *info = fwm_kernels_f32()->rule_info(i);
    return info ? Py_BuildValue("{s:s,s:s,s:O,s:O,s:s,s:O,s:O,s:O,s:s}", "name", info->name, "function", info->function,
                                "scalar_gate", truth(info->scalar_gate), "channel_gate", truth(info->channel_gate),
                                "strength", strengths[info->strength], "normalizes", truth(info->normalizes),
                                "has_qk_norm", truth(info->has_qk_norm), "clamps", truth(info->clamps), "summary",
                                info->summary)
                : NULL;
}

static PyObject *readout_row(size_t i)
{
    const FwmReadoutInfo *info = fwm_kernels_f32()->readout_info(i);
    return info ? Py_BuildValue("{s:s,s:s,s:O,s:O,s:s}", "name", info->name, "function", info->function, "uses_map",
                                truth(info->uses_map), "uses_beta", truth(info->uses_beta), "summary", info->summary)
                : NULL;
}

/* A tuple of the rows, which end with NULL. */
static int add_table(PyObject *module, const char *name, PyObject *(*row_of)(size_t))
{
    PyObject *list = PyList_New(0), *row = NULL;
    int status = list ? 0 : -1;
    for (size_t i = 0; status == 0 && (row = row_of(i)); i++) {
        status = PyList_Append(list, row);
        Py_DECREF(row);
    }
    PyObject *tuple = status == 0 && !PyErr_Occurred() ? PyList_AsTuple(list) : NULL;
    status = tuple ? PyModule_AddObjectRef(module, name, tuple) : -1;
    Py_XDECREF(tuple);
    Py_XDECREF(list);
    return status;
}

int fwm_add_tables(PyObject *module)
{
    if (add_table(module, "MAPS", map_row) < 0 || add_table(module, "RULES", rule_row) < 0)
        return -1;
    return add_table(module, "READOUTS", readout_row);
}
