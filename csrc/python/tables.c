#include "python/tables.h"

#include "api/dispatch.h"
#include "python/bindings.h"

/* ---- rows by name ---- */

enum { MOST_ROWS = 64 };

/* The names of a table's rows, interned: a name from Python is as a rule the very object. */
typedef struct {
    const char *expected;
    size_t n;
    PyObject *functions[MOST_ROWS], *names[MOST_ROWS];
} RowNames;

static RowNames of_maps = {"a feature map"}, of_rules = {"a function of fwm_py.rules"},
                of_readouts = {"an update rule"};

static int add_names(RowNames *table, const char *function, const char *name)
{
    if (table->n == MOST_ROWS)
        return PyErr_Format(PyExc_SystemError, "more than %d rows", MOST_ROWS), -1;
    table->functions[table->n] = PyUnicode_InternFromString(function);
    table->names[table->n] = PyUnicode_InternFromString(name);
    return table->functions[table->n] && table->names[table->n] ? (int)table->n++ : -1;
}

static Py_ssize_t find(const RowNames *table, PyObject *given, const char *argument)
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

Py_ssize_t fwm_find_map(PyObject *name, const char *argument)
{
    return find(&of_maps, name, argument);
}

Py_ssize_t fwm_find_rule(PyObject *name, const char *argument)
{
    return find(&of_rules, name, argument);
}

Py_ssize_t fwm_find_readout(PyObject *name, const char *argument)
{
    return find(&of_readouts, name, argument);
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

/* A tuple of the rows, which end with NULL, and their names. */
static int add_table(PyObject *module, const char *name, RowNames *names, PyObject *(*row_of)(size_t))
{
    PyObject *list = PyList_New(0), *row = NULL;
    int status = list ? 0 : -1;
    names->n = 0;
    for (size_t i = 0; status == 0 && (row = row_of(i)); i++) {
        status =
            PyList_Append(list, row) < 0 || add_names(names, PyUnicode_AsUTF8(PyDict_GetItemString(row, "function")),
                                                      PyUnicode_AsUTF8(PyDict_GetItemString(row, "name"))) < 0
                ? -1
                : 0;
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
    if (add_table(module, "MAPS", &of_maps, map_row) < 0 || add_table(module, "RULES", &of_rules, rule_row) < 0)
        return -1;
    return add_table(module, "READOUTS", &of_readouts, readout_row);
}
