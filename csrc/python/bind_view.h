#ifndef FWM_PYTHON_BIND_VIEW_H
#define FWM_PYTHON_BIND_VIEW_H

/* Module function, METH_FASTCALL. */
PyObject *fwm_py_array_at(PyObject *module, PyObject *const *args, Py_ssize_t n_args);

#endif
