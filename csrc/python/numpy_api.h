/* Python.h and NumPy's C API, as every file of csrc/python needs them. module.c imports the API and says so first. */
#ifndef FWM_PYTHON_NUMPY_API_H
#define FWM_PYTHON_NUMPY_API_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#ifndef FWM_IMPORTS_NUMPY_API
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#endif
