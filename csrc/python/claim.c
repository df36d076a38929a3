#include "python/claim.h"

int fwm_claim(PyObject *object)
{
    FwmClaimed *self = (FwmClaimed *)object;
    const unsigned long here = PyThread_get_thread_ident();
    if (!atomic_exchange(&self->busy, true)) {
        self->thread = here;
        return 0;
    }
    PyErr_Format(PyExc_RuntimeError, "this %.100s is in use by %s", Py_TYPE(object)->tp_name,
                 self->thread == here ? "a call that has not ended" : "another thread");
    return -1;
}

void fwm_release(PyObject *object)
{
    atomic_store(&((FwmClaimed *)object)->busy, false);
}

int fwm_add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type == NULL)
        return -1;
    int status = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    return status;
}
