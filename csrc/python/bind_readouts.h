#ifndef FWM_PYTHON_BIND_READOUTS_H
#define FWM_PYTHON_BIND_READOUTS_H

/* Module functions, METH_VARARGS. */
PyObject *fwm_py_rule_forward(PyObject *module, PyObject *args);
PyObject *fwm_py_rule_backward(PyObject *module, PyObject *args);

#endif
