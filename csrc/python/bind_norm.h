/* fwm_py.norm. Include after Python.h. */
#ifndef FWM_PYTHON_BIND_NORM_H
#define FWM_PYTHON_BIND_NORM_H

PyObject *fwm_py_norm_forward(PyObject *module, PyObject *const *args, Py_ssize_t n_args);
PyObject *fwm_py_norm_backward(PyObject *module, PyObject *const *args, Py_ssize_t n_args);

#endif
