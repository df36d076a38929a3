/* fwm_py.feature_maps: map_forward, map_backward, draw_omega. Tokens are dealt to threads in parts of a fixed size. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include "python/args.h"
#include "python/bind_maps.h"
#include "python/bind_random.h"
#include "runtime/scratch.h"
#include "api/dispatch.h"
#include "runtime/threads.h"

#define LARGEST_D (1 << 20)
#define LARGEST_FEATURES 2147483647LL

/* One call: x (n x d) -> phi (n x p), or dphi, x -> dx. */
typedef struct {
    const FwmKernels *kernels;
    size_t map, d, argument, n, features;
    PyArrayObject *x, *dy, *omega, *out; /* dy and omega may be NULL */
} MapCall;

/* The argument of the map: nothing, an integer, or omega (d x m). */
static int read_argument(MapCall *c, PyObject *given)
{
    const FwmMapInfo *info = c->kernels->map_info(c->map);
    if (info->takes_omega) {
        c->omega = fwm_real_array_as(given, "omega", PyArray_TYPE(c->x));
        const npy_intp shape[] = {(npy_intp)c->d, -1};
        if (!c->omega || fwm_check_shape(c->omega, "omega", "(d, m)", 2, shape) < 0)
            return -1;
        c->argument = (size_t)PyArray_DIM(c->omega, 1);
        if (c->argument == 0) {
            PyErr_SetString(PyExc_ValueError, "omega: got shape (d, 0), expected at least one column");
            return -1;
        }
    } else if (info->argument[0]) {
        long long value;
        if (fwm_integer_argument(given, info->argument, 1, LARGEST_FEATURES / (2 * (long long)c->d), &value) < 0)
            return -1;
        c->argument = (size_t)value;
    } else if (given != Py_None) {
        PyErr_Format(PyExc_TypeError, "%s takes no argument", info->function);
        return -1;
    }
    return 0;
}

static int read_x(MapCall *c, PyObject *given)
{
    c->x = fwm_real_array(given, "x", 0, NULL);
    if (!c->x)
        return -1;
    const int rank = PyArray_NDIM(c->x);
    if (rank == 0 || PyArray_DIM(c->x, rank - 1) == 0 || PyArray_DIM(c->x, rank - 1) > LARGEST_D) {
        PyErr_Format(PyExc_ValueError,
                     "x: got %d dimensions of which the last has %zd, expected (..., d) with d in 1..%d", rank,
                     rank ? PyArray_DIM(c->x, rank - 1) : (npy_intp)0, LARGEST_D);
        return -1;
    }
    c->d = (size_t)PyArray_DIM(c->x, rank - 1);
    c->n = (size_t)PyArray_SIZE(c->x) / c->d;
    c->kernels = fwm_kernels_for(c->x);
    return 0;
}

static int read_dy(MapCall *c, PyObject *given)
{
    npy_intp shape[NPY_MAXDIMS];
    const int rank = PyArray_NDIM(c->x);
    for (int i = 0; i < rank - 1; i++)
        shape[i] = PyArray_DIM(c->x, i);
    shape[rank - 1] = (npy_intp)c->features;
    c->dy = fwm_real_array(given, "dy", PyArray_TYPE(c->x), "x");
    return c->dy ? fwm_check_shape(c->dy, "dy", "(..., p)", rank, shape) : -1;
}

/* A new array, or the one given, which is apart from all inputs. */
static int make_out(MapCall *c, PyObject *given, npy_intp last)
{
    PyArrayObject *const inputs[] = {c->x, c->dy, c->omega};
    static const char *const names[] = {"x", "dy", "omega"};
    npy_intp shape[NPY_MAXDIMS];
    const int rank = PyArray_NDIM(c->x), type = PyArray_TYPE(c->x);
    for (int i = 0; i < rank; i++)
        shape[i] = i < rank - 1 ? PyArray_DIM(c->x, i) : last;
    if (given == Py_None)
        c->out = (PyArrayObject *)PyArray_SimpleNew(rank, shape, type);
    else
        c->out = fwm_output_array(given, "out", type, "x", c->dy ? "(..., d)" : "(..., p)", rank, shape);
    for (int i = 0; c->out && given != Py_None && i < 3; i++)
        if (inputs[i] && fwm_check_apart(c->out, "out", inputs[i], names[i]) < 0)
            return -1;
    return c->out ? 0 : -1;
}

static int run(MapCall *c)
{
    FwmMapCall call = {.map = c->map, .d = c->d, .argument = c->argument, .n = c->n, .x = PyArray_DATA(c->x)};
    call.omega = fwm_data(c->omega);
    if (!c->dy) {
        call.phi = PyArray_DATA(c->out);
        return fwm_run(&c->kernels->map, &c->kernels->map.forward, &call);
    }
    call.dphi = PyArray_DATA(c->dy);
    call.dx = PyArray_DATA(c->out);
    return fwm_run(&c->kernels->map, &c->kernels->map.backward, &call);
}

static PyObject *call_map(PyObject *function, PyObject *dy, PyObject *x, PyObject *argument, PyObject *out)
{
    MapCall c = {0};
    const Py_ssize_t row = fwm_find_map(function, "function");
    if (row < 0)
        return NULL;
    c.map = (size_t)row;
    int status = -1;
    if (read_x(&c, x) == 0 && read_argument(&c, argument) == 0) {
        c.features = c.kernels->map_features(c.map, c.d, c.argument);
        if ((!dy || read_dy(&c, dy) == 0) && make_out(&c, out, (npy_intp)(dy ? c.d : c.features)) == 0)
            status = run(&c);
    }
    Py_XDECREF(c.x);
    Py_XDECREF(c.dy);
    Py_XDECREF(c.omega);
    if (status < 0)
        Py_CLEAR(c.out);
    return (PyObject *)c.out;
}

PyObject *fwm_py_map_forward(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *function, *x, *argument, *out;
    if (!PyArg_ParseTuple(args, "OOOO:map_forward", &function, &x, &argument, &out))
        return NULL;
    return call_map(function, NULL, x, argument, out);
}

PyObject *fwm_py_map_backward(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *function, *dy, *x, *argument, *out;
    if (!PyArg_ParseTuple(args, "OOOOO:map_backward", &function, &dy, &x, &argument, &out))
        return NULL;
    return call_map(function, dy, x, argument, out);
}

/* omega (d x m), float32: ceil(m / d) blocks of d x d normals from the generator, made orthogonal. */
PyObject *fwm_py_draw_omega(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *given_d, *given_m, *generator;
    long long d, m;
    if (!PyArg_ParseTuple(args, "OOO:draw_omega", &given_d, &given_m, &generator) ||
        fwm_integer_argument(given_d, "d", 1, 8192, &d) < 0 || fwm_integer_argument(given_m, "m", 1, 1 << 20, &m) < 0)
        return NULL;
    FwmBlockSource *source = fwm_block_source_of(generator);
    if (!source || fwm_random_claim(generator) < 0)
        return NULL;
    const FwmKernels *kernels = fwm_kernels_f32();
    const size_t block = (size_t)(d * d), blocks = (size_t)((m + d - 1) / d);
    const npy_intp shape[] = {(npy_intp)d, (npy_intp)m};
    PyObject *omega = PyArray_SimpleNew(2, shape, NPY_FLOAT);
    float *normals = omega ? fwm_scratch(blocks * block * sizeof(float)) : NULL;
    void *scratch = normals ? fwm_scratch(kernels->make_omega_scratch((size_t)d)) : NULL;
    if (scratch) {
        Py_BEGIN_ALLOW_THREADS
        for (size_t i = 0; i < blocks; i++)
            fwm_next_normal_block(source, block, normals + i * block);
        kernels->make_omega((size_t)d, (size_t)m, normals, PyArray_DATA((PyArrayObject *)omega), scratch);
        Py_END_ALLOW_THREADS
    } else {
        Py_CLEAR(omega);
        PyErr_NoMemory();
    }
    fwm_release_scratch(normals);
    fwm_release_scratch(scratch);
    fwm_random_release(generator);
    return omega;
}
