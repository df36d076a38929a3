#ifndef FWM_PYTHON_BIND_MAPS_H
#define FWM_PYTHON_BIND_MAPS_H

/* Module functions, METH_VARARGS. */
PyObject *fwm_py_map_forward(PyObject *module, PyObject *args);
PyObject *fwm_py_map_backward(PyObject *module, PyObject *args);
PyObject *fwm_py_draw_omega(PyObject *module, PyObject *args);

#endif
