#ifndef FWM_PYTHON_BIND_MODEL_H
#define FWM_PYTHON_BIND_MODEL_H

/* Adds the type Model. 0, or -1 with an exception. */
int fwm_add_model_type(PyObject *module);

/* Module function train, METH_VARARGS. */
PyObject *fwm_py_train(PyObject *module, PyObject *args);

#endif
