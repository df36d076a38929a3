#include "python/objects.h"

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

PyObject *fwm_call_claimed(PyObject *self, const FwmSignature *signature, FwmFunction function, PyObject *const *args,
                           Py_ssize_t n, PyObject *names)
{
    FwmArguments a;
    fwm_clear(&a);
    PyObject *result = NULL;
    if (fwm_read_arguments(&a, signature, args, n, names) == 0 && fwm_claim(self) == 0) {
        result = function(self, &a);
        fwm_release(self);
    }
    fwm_release_arguments(&a);
    return result;
}

int fwm_add_type(PyObject *module, const char *name, size_t size, PyType_Slot *slots, FwmSignature *const *signatures,
                 size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (fwm_prepare(signatures[i]) < 0)
            return -1;
    PyType_Spec spec = {name, (int)size, 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, slots};
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    const int status = type ? PyModule_AddType(module, (PyTypeObject *)type) : -1;
    Py_XDECREF(type);
    return status;
}

void fwm_free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}
