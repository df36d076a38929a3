/* fwm_py.convolution. Include after Python.h. */
#ifndef FWM_PYTHON_BIND_CONVOLUTION_H
#define FWM_PYTHON_BIND_CONVOLUTION_H

PyObject *fwm_py_convolution_forward(PyObject *module, PyObject *const *args, Py_ssize_t n_args);
PyObject *fwm_py_convolution_backward(PyObject *module, PyObject *const *args, Py_ssize_t n_args);

#endif
