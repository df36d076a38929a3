/* fwm_py.attention. Include after Python.h. */
#ifndef FWM_PYTHON_BIND_ATTENTION_H
#define FWM_PYTHON_BIND_ATTENTION_H

PyObject *fwm_py_attention_forward(PyObject *module, PyObject *args);
PyObject *fwm_py_attention_backward(PyObject *module, PyObject *args);

#endif
