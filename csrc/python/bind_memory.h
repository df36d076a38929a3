#ifndef FWM_PYTHON_BIND_MEMORY_H
#define FWM_PYTHON_BIND_MEMORY_H

/* Module functions, METH_FASTCALL: a call for one token is short, and its arguments are many. */
PyObject *fwm_py_memory_forward(PyObject *module, PyObject *const *args, Py_ssize_t n_args);
PyObject *fwm_py_memory_backward(PyObject *module, PyObject *const *args, Py_ssize_t n_args);

/* Adds KERNELS, the table of the general memories, as a tuple of dicts. 0, or -1 with an exception. */
int fwm_add_memory_table(PyObject *module);

#endif
