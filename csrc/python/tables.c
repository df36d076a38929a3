#include "api/dispatch.h"
#include "python/bindings.h"

/* ---- rows by name ---- */

enum { MOST_ROWS = 64 };

/* Interned: a name from Python is as a rule the very object. */
struct FwmTable {
    const char *expected;
    size_t n;
    PyObject *functions[MOST_ROWS], *names[MOST_ROWS];
};

FwmTable fwm_maps = {"a feature map"}, fwm_rules = {"a function of fwm_py.rules"}, fwm_readouts = {"a read-out"};

Py_ssize_t fwm_find(const FwmTable *table, PyObject *given, const char *argument)
{
    for (size_t row = 0; row < table->n; row++)
        if (table->functions[row] == given || table->names[row] == given)
            return (Py_ssize_t)row;
    if (!PyUnicode_Check(given)) {
        PyErr_Format(PyExc_TypeError, "%s: got %.100s, expected a string", argument, Py_TYPE(given)->tp_name);
        return -1;
    }
    for (size_t row = 0; row < table->n; row++)
        if (PyUnicode_Compare(table->functions[row], given) == 0 || PyUnicode_Compare(table->names[row], given) == 0)
            return (Py_ssize_t)row;
    PyErr_Format(PyExc_ValueError, "%s: got %R, expected the name of %s", argument, given, table->expected);
    return -1;
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

static PyObject *interned(PyObject *row, const char *key)
{
    PyObject *name = Py_NewRef(PyDict_GetItemString(row, key));
    PyUnicode_InternInPlace(&name);
    return name;
}

/* A tuple of the rows, which end with NULL, and their names. */
static int add_table(PyObject *module, const char *name, FwmTable *table, PyObject *(*row_of)(size_t))
{
    PyObject *list = PyList_New(0), *row;
    int status = list ? 0 : -1;
    for (table->n = 0; status == 0 && table->n < MOST_ROWS && (row = row_of(table->n)); table->n++) {
        table->functions[table->n] = interned(row, "function");
        table->names[table->n] = interned(row, "name");
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
    if (add_table(module, "MAPS", &fwm_maps, map_row) < 0 || add_table(module, "RULES", &fwm_rules, rule_row) < 0)
        return -1;
    return add_table(module, "READOUTS", &fwm_readouts, readout_row);
}
