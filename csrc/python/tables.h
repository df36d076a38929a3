/* The tables of maps, rules and read-outs: their rows by name, and as Python sees them. */
#ifndef FWM_PYTHON_TABLES_H
#define FWM_PYTHON_TABLES_H

#include "python/numpy_api.h"

/* A row by the name of its function or its short name; -1 with an exception that names `argument`. */
Py_ssize_t fwm_find_map(PyObject *name, const char *argument);
Py_ssize_t fwm_find_rule(PyObject *name, const char *argument);
Py_ssize_t fwm_find_readout(PyObject *name, const char *argument);

#endif
