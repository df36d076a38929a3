/* A state that does not fit raises ValueError or TypeError and changes nothing. */
#include "python/objects.h"

#include <string.h>

#define HIGHEST_WORD 4294967295LL

static PyObject *copy_of(const void *numbers, size_t n, int type)
{
    const npy_intp length = (npy_intp)n;
    PyObject *array = PyArray_SimpleNew(1, &length, type);
    if (array && n)
        memcpy(PyArray_DATA((PyArrayObject *)array), numbers, n * (size_t)PyArray_ITEMSIZE((PyArrayObject *)array));
    return array;
}

/* The array of n numbers of this type. */
static PyArrayObject *vector_of(PyObject *given, size_t n, int type)
{
    if (!PyArray_Check(given) || PyArray_TYPE((PyArrayObject *)given) != type ||
        PyArray_NDIM((PyArrayObject *)given) != 1 || PyArray_SIZE((PyArrayObject *)given) != (npy_intp)n)
        return (PyArrayObject *)PyErr_Format(PyExc_ValueError,
                                             "state: got %.100s, expected an array of %zu numbers of its type",
                                             Py_TYPE(given)->tp_name, n);
    return (PyArrayObject *)PyArray_FromArray((PyArrayObject *)given, PyArray_DescrFromType(type), NPY_ARRAY_CARRAY_RO);
}

static int check_tuple(PyObject *state, Py_ssize_t n)
{
    if (PyTuple_Check(state) && PyTuple_GET_SIZE(state) == n)
        return 0;
    PyErr_Format(PyExc_ValueError, "state: got %.100s, expected a tuple of %zd", Py_TYPE(state)->tp_name, n);
    return -1;
}

/* ---- generators ---- */

PyObject *fwm_words_state(const FwmMT19937 *bits)
{
    return Py_BuildValue("(Ni)", copy_of(bits->state, FWM_MT19937_WORDS, NPY_UINT32), bits->position);
}

static int set_words(FwmMT19937 *bits, PyObject *given, PyObject *given_position)
{
    long long position;
    PyArrayObject *words = vector_of(given, FWM_MT19937_WORDS, NPY_UINT32);
    if (!words || fwm_integer(given_position, "position", 0, FWM_MT19937_WORDS, &position) < 0) {
        Py_XDECREF(words);
        return -1;
    }
    memcpy(bits->state, PyArray_DATA(words), sizeof bits->state);
    fwm_mt19937_temper(bits);
    bits->position = (int)position;
    Py_DECREF(words);
    return 0;
}

int fwm_set_words_state(FwmMT19937 *bits, PyObject *state)
{
    return check_tuple(state, 2) < 0 ? -1 : set_words(bits, PyTuple_GET_ITEM(state, 0), PyTuple_GET_ITEM(state, 1));
}

PyObject *fwm_source_state(const FwmBlockSource *source)
{
    if (source->kind == FWM_PHILOX)
        return Py_BuildValue("(Kk)", (unsigned long long)source->philox.seed, (unsigned long)source->philox.next_block);
    const FwmTorchCpu *torch = &source->torch_cpu;
    PyObject *spare = torch->has_spare ? PyFloat_FromDouble(torch->spare) : Py_NewRef(Py_None);
    return Py_BuildValue("(NiN)", copy_of(torch->bits.state, FWM_MT19937_WORDS, NPY_UINT32), torch->bits.position,
                         spare);
}

static int set_philox(FwmPhilox *philox, PyObject *state)
{
    long long seed, next_block;
    if (check_tuple(state, 2) < 0 || fwm_integer(PyTuple_GET_ITEM(state, 0), "seed", 0, HIGHEST_WORD, &seed) < 0 ||
        fwm_integer(PyTuple_GET_ITEM(state, 1), "blocks_drawn", 0, HIGHEST_WORD, &next_block) < 0)
        return -1;
    *philox = (FwmPhilox){.seed = (uint64_t)seed, .next_block = (uint32_t)next_block};
    return 0;
}

int fwm_set_source_state(FwmBlockSource *source, PyObject *state)
{
    if (source->kind == FWM_PHILOX)
        return set_philox(&source->philox, state);
    if (check_tuple(state, 3) < 0)
        return -1;
    PyObject *given = PyTuple_GET_ITEM(state, 2);
    const double spare = given == Py_None ? 0 : PyFloat_AsDouble(given);
    if (spare == -1 && PyErr_Occurred())
        return -1;
    if (set_words(&source->torch_cpu.bits, PyTuple_GET_ITEM(state, 0), PyTuple_GET_ITEM(state, 1)) < 0)
        return -1;
    source->torch_cpu.has_spare = given != Py_None;
    source->torch_cpu.spare = spare;
    return 0;
}

/* ---- models ---- */

PyObject *fwm_model_state(const FwmModel *model, int type)
{
    return Py_BuildValue("(NNNKN)", copy_of(model->numbers, model->n_numbers, type),
                         copy_of(model->moment1, model->n_trained, type),
                         copy_of(model->moment2, model->n_trained, type), (unsigned long long)model->steps,
                         fwm_source_state(&model->omega_source));
}

int fwm_set_model_state(FwmModel *model, int type, PyObject *state)
{
    const size_t sizes[] = {model->n_numbers, model->n_trained, model->n_trained}, bytes = model->kernels->real_size;
    void *const places[] = {model->numbers, model->moment1, model->moment2};
    PyArrayObject *arrays[3] = {NULL};
    long long steps;
    int status = check_tuple(state, 5);
    for (int i = 0; status == 0 && i < 3; i++)
        status = (arrays[i] = vector_of(PyTuple_GET_ITEM(state, i), sizes[i], type)) ? 0 : -1;
    if (status == 0)
        status = fwm_integer(PyTuple_GET_ITEM(state, 3), "steps", 0, INT64_MAX, &steps);
    if (status == 0)
        status = fwm_set_source_state(&model->omega_source, PyTuple_GET_ITEM(state, 4));
    for (int i = 0; i < 3; i++) {
        if (status == 0)
            memcpy(places[i], PyArray_DATA(arrays[i]), sizes[i] * bytes);
        Py_XDECREF(arrays[i]);
    }
    if (status == 0)
        model->steps = (uint64_t)steps;
    return status;
}
