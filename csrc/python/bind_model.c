/* Model: the experiments' model as an object that owns its memory and hands out views of its parameters. One thread
 * at a time may use a model; a second one gets a RuntimeError. While it is trained, a callback may read it, and the run
 * goes on as if it had not. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL fwm_ARRAY_API
#define NO_IMPORT_ARRAY
#include <numpy/arrayobject.h>

#include <string.h>

#include "python/args.h"
#include "python/bind_model.h"
#include "python/bind_random.h"
#include "python/model_object.h"
#include "python/states.h"
#include "retrieval/initial.h"
#include "retrieval/model.h"
#include "retrieval/train.h"
#include "api/dispatch.h"
#include "runtime/threads.h"

/* ---- life ---- */

static int read_sizes(FwmModelSizes *z, PyObject *const given[4], PyObject *map, PyObject *rule, bool replace)
{
    static const char *const names[] = {"n_keys", "hidden_size", "batch_size", "argument"};
    static const long long lowest[] = {2, 1, 1, 0}, highest[] = {1 << 20, 1 << 16, 1 << 20, 1 << 24};
    long long numbers[4];
    for (int i = 0; i < 4; i++)
        if (fwm_integer_argument(given[i], names[i], lowest[i], highest[i], &numbers[i]) < 0)
            return -1;
    const Py_ssize_t rule_row = fwm_find_readout(rule, "rule");
    if (rule_row < 0)
        return -1;
    const FwmKernels *kernels = fwm_kernels_f32();
    const FwmReadoutInfo *readout_info = kernels->readout_info((size_t)rule_row);
    z->n_keys = (size_t)numbers[0], z->d = (size_t)numbers[1], z->batch = (size_t)numbers[2];
    z->length = replace ? 2 * z->n_keys : z->n_keys;
    z->readout = (size_t)rule_row;
    z->with_beta = readout_info->uses_beta;
    z->with_map = readout_info->uses_map;
    if (!z->with_map)
        return 0;
    const Py_ssize_t map_row = fwm_find_map(map, "map");
    if (map_row < 0)
        return -1;
    z->map = (size_t)map_row;
    if (kernels->map_info(z->map)->argument[0]) {
        z->argument = (size_t)numbers[3];
        if (z->argument == 0) {
            PyErr_SetString(PyExc_ValueError, "argument: got 0, expected at least 1");
            return -1;
        }
    }
    return 0;
}

/* The generator of the initial parameters, which FAVOR+ goes on with if it is not CUDA's. */
static int initialise(FwmModel *model, uint32_t seed, bool philox)
{
    FwmTorchCpu generator;
    fwm_torch_seed(&generator, seed);
    if (fwm_initial_parameters(model, &generator) < 0)
        return -1;
    if (philox) {
        model->omega_source.kind = FWM_PHILOX;
        model->omega_source.philox = (FwmPhilox){.seed = seed, .next_block = 0};
    } else {
        model->omega_source.kind = FWM_TORCH_CPU;
        model->omega_source.torch_cpu = generator;
    }
    return 0;
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"n_keys",  "hidden_size", "batch_size",      "argument", "map", "rule",
                            "replace", "seed",        "favor_generator", "dtype",    NULL};
    PyObject *given[4], *map, *rule, *given_replace, *given_seed;
    const char *generator;
    PyArray_Descr *dtype = NULL;
    bool replace;
    long long seed;
    FwmModelSizes sizes = {0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "$OOOOOOOOsO&:Model", names, &given[0], &given[1], &given[2],
                                     &given[3], &map, &rule, &given_replace, &given_seed, &generator,
                                     PyArray_DescrConverter, &dtype))
        return NULL;
    const int number_type = dtype->type_num;
    Py_DECREF(dtype);
    if (fwm_flag(given_replace, "replace", &replace) < 0 || read_sizes(&sizes, given, map, rule, replace) < 0 ||
        fwm_integer_argument(given_seed, "seed", 0, HIGHEST_WORD, &seed) < 0)
        return NULL;
    if (number_type != NPY_FLOAT && number_type != NPY_DOUBLE)
        return PyErr_Format(PyExc_TypeError, "dtype: expected float32 or float64");
    const bool philox = strcmp(generator, "philox") == 0;
    if (!philox && strcmp(generator, "mt19937") != 0)
        return PyErr_Format(PyExc_ValueError, "favor_generator: got '%s', expected philox or mt19937", generator);
    FwmModelObject *self = (FwmModelObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->type = number_type;
    const FwmKernels *kernels = number_type == NPY_FLOAT ? fwm_kernels_f32() : fwm_kernels_f64();
    if (fwm_model_init(&self->model, kernels, &sizes) < 0 || initialise(&self->model, (uint32_t)seed, philox) < 0) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void model_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    fwm_model_free(&((FwmModelObject *)self)->model);
    type->tp_free(self);
    Py_DECREF(type);
}

bool fwm_is_model(PyObject *object)
{
    return Py_TYPE(object)->tp_dealloc == model_dealloc; /* no class can be derived from Model */
}

void fwm_model_release(FwmModelObject *self)
{
    if (self->nested) {
        self->model.omega_source = self->source_before;
        self->nested = false;
        self->in_callback = true;
    } else {
        atomic_store(&self->busy, false);
    }
}

/* The same for a call inside a callback of the training, on the scratch that the training has. */
static int claim_nested(FwmModelObject *self, FwmModelUse use)
{
    const char *reason =
        self->thread != PyThread_get_thread_ident() ? "is in use by another thread"
        : !self->in_callback                        ? "is in use by a call that has not ended"
        : use == FWM_CHANGES
            ? "is being trained: on_evaluation and on_progress may read it, but neither step nor train it"
            : NULL;
    if (reason) {
        PyErr_Format(PyExc_RuntimeError, "this Model %s", reason);
        return -1;
    }
    self->nested = true;
    self->in_callback = false;
    self->source_before = self->model.omega_source;
    self->model.threads = (int)fwm_min((size_t)fwm_num_threads(), (size_t)self->model.scratch_threads);
    return 0;
}

int fwm_model_claim(FwmModelObject *self, FwmModelUse use)
{
    if (atomic_exchange(&self->busy, true))
        return claim_nested(self, use);
    self->thread = PyThread_get_thread_ident();
    if (fwm_model_reserve(&self->model) < 0) {
        fwm_model_release(self);
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

/* ---- parameters and gradients ---- */

/* A view into `numbers`, kept alive by owner. */
static PyObject *view_of(const FwmModelObject *self, const FwmParameter *p, void *numbers, PyObject *owner)
{
    const npy_intp size = (npy_intp)self->model.kernels->real_size;
    npy_intp shape[] = {(npy_intp)p->rows, (npy_intp)p->columns};
    npy_intp strides[] = {(npy_intp)p->row_stride * size, (npy_intp)p->column_stride * size};
    PyObject *view =
        PyArray_New(&PyArray_Type, p->columns ? 2 : 1, shape, self->type, strides,
                    (char *)numbers + (npy_intp)p->offset * size, 0, NPY_ARRAY_WRITEABLE | NPY_ARRAY_ALIGNED, NULL);
    if (view && PyArray_SetBaseObject((PyArrayObject *)view, Py_NewRef(owner)) < 0)
        Py_CLEAR(view);
    return view;
}

/* Copies of the parameters, which no other thread is training meanwhile. */
static PyObject *model_snapshot(PyObject *object, PyObject *Py_UNUSED(args))
{
    FwmModelObject *self = (FwmModelObject *)object;
    PyObject *dict = PyDict_New();
    if (!dict || fwm_model_claim(self, FWM_READS) < 0) {
        Py_XDECREF(dict);
        return NULL;
    }
    for (size_t i = 0; dict && i < self->model.n_parameters; i++) {
        PyObject *view = view_of(self, &self->model.parameters[i], self->model.numbers, object);
        PyObject *copy = view ? PyArray_NewCopy((PyArrayObject *)view, NPY_CORDER) : NULL;
        if (!copy || PyDict_SetItemString(dict, self->model.parameters[i].name, copy) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(copy);
        Py_XDECREF(view);
    }
    fwm_model_release(self);
    return dict;
}

static PyObject *model_parameters(PyObject *object, void *Py_UNUSED(closure))
{
    FwmModelObject *self = (FwmModelObject *)object;
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < self->model.n_parameters; i++) {
        PyObject *view = view_of(self, &self->model.parameters[i], self->model.numbers, object);
        if (!view || PyDict_SetItemString(dict, self->model.parameters[i].name, view) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(view);
    }
    return dict;
}

static PyObject *model_get_state(PyObject *object, PyObject *Py_UNUSED(args))
{
    FwmModelObject *self = (FwmModelObject *)object;
    if (fwm_model_claim(self, FWM_READS) < 0)
        return NULL;
    PyObject *state = fwm_model_state(&self->model, self->type);
    fwm_model_release(self);
    return state;
}

static PyObject *model_set_state(PyObject *object, PyObject *state)
{
    FwmModelObject *self = (FwmModelObject *)object;
    if (fwm_model_claim(self, FWM_CHANGES) < 0)
        return NULL;
    const int status = fwm_set_model_state(&self->model, self->type, state);
    fwm_model_release(self);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *model_steps(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(((FwmModelObject *)object)->model.steps);
}

/* A copy of one gradient in the published shape. Rows that are not trained (embeddingK's values) are zero. */
static PyObject *gradient_of(FwmModelObject *self, const FwmParameter *p)
{
    npy_intp shape[] = {(npy_intp)p->rows, (npy_intp)p->columns};
    PyObject *out = PyArray_ZEROS(p->columns ? 2 : 1, shape, self->type, 0);
    FwmParameter trained = *p;
    if (p->offset == self->model.embedding)
        trained.rows = self->model.sizes.n_keys;
    PyObject *from = out ? view_of(self, &trained, self->model.gradients, (PyObject *)self) : NULL;
    PyObject *rows = from ? PySequence_GetSlice(out, 0, (Py_ssize_t)trained.rows) : NULL;
    if (!rows || PyArray_CopyInto((PyArrayObject *)rows, (PyArrayObject *)from) < 0)
        Py_CLEAR(out);
    Py_XDECREF(rows);
    Py_XDECREF(from);
    return out;
}

static PyObject *gradients(FwmModelObject *self)
{
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < self->model.n_parameters; i++) {
        const FwmParameter *p = &self->model.parameters[i];
        if (!p->trained)
            continue;
        PyObject *gradient = gradient_of(self, p);
        if (!gradient || PyDict_SetItemString(dict, p->name, gradient) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(gradient);
    }
    return dict;
}

/* ---- batches ---- */

typedef struct {
    FwmBatch batch;
    PyArrayObject *keys, *values, *query, *answer, *omega;
} BatchArrays;

static void release_batch(BatchArrays *a)
{
    Py_XDECREF(a->keys);
    Py_XDECREF(a->values);
    Py_XDECREF(a->query);
    Py_XDECREF(a->answer);
    Py_XDECREF(a->omega);
}

static int read_omega(FwmModelObject *self, BatchArrays *a, PyObject *omega)
{
    const FwmModelSizes *z = &self->model.sizes;
    if (omega == Py_None)
        return 0;
    if (!z->with_map || !self->model.kernels->map_info(z->map)->takes_omega) {
        PyErr_SetString(PyExc_ValueError, "omega: expected None, for this map has no random features");
        return -1;
    }
    const npy_intp shape[] = {(npy_intp)z->d, (npy_intp)z->argument};
    a->omega = fwm_real_array_as(omega, "omega", self->type);
    if (!a->omega || fwm_check_shape(a->omega, "omega", "(d, m)", 2, shape) < 0)
        return -1;
    a->batch.omega = PyArray_DATA(a->omega);
    return 0;
}

/* answer NULL: none is asked for. */
static int read_batch(FwmModelObject *self, BatchArrays *a, PyObject *keys, PyObject *values, PyObject *query,
                      PyObject *answer, PyObject *omega)
{
    const FwmModelSizes *z = &self->model.sizes;
    const long long N = (long long)z->n_keys;
    const npy_intp any[] = {-1, (npy_intp)z->length};
    memset(a, 0, sizeof *a);
    a->keys = fwm_index_array(keys, "keys", "(B, L)", 2, any, 0, N - 1);
    if (!a->keys)
        return -1;
    const npy_intp *shape = PyArray_DIMS(a->keys);
    if (shape[0] < 1 || (size_t)shape[0] > z->batch) {
        PyErr_Format(PyExc_ValueError, "keys: got %zd sequences, expected 1..%zu, the batch size", shape[0], z->batch);
        return -1;
    }
    a->values = fwm_index_array(values, "values", "(B, L)", 2, shape, N, 2 * N - 1);
    a->query = a->values ? fwm_index_array(query, "query", "(B,)", 1, shape, 0, N - 1) : NULL;
    if (!a->query)
        return -1;
    if (answer && !(a->answer = fwm_index_array(answer, "answer", "(B,)", 1, shape, N, 2 * N - 1)))
        return -1;
    a->batch.n = (size_t)shape[0];
    a->batch.keys = PyArray_DATA(a->keys);
    a->batch.values = PyArray_DATA(a->values);
    a->batch.query = PyArray_DATA(a->query);
    a->batch.answer = a->answer ? PyArray_DATA(a->answer) : NULL;
    return read_omega(self, a, omega);
}

/* ---- methods ---- */

typedef enum { LOSS, GRADIENTS, STEP } Purpose;

static PyObject *run_batch(PyObject *object, PyObject *args, const char *format, Purpose purpose)
{
    FwmModelObject *self = (FwmModelObject *)object;
    PyObject *keys, *values, *query, *answer, *omega, *out = NULL;
    double lr = 0, loss = 0;
    if (!PyArg_ParseTuple(args, format, &keys, &values, &query, &answer, &omega, &lr))
        return NULL;
    if (purpose == STEP && !(lr > 0 && lr <= 1e300))
        return PyErr_Format(PyExc_ValueError, "lr: expected a finite number above 0");
    BatchArrays a;
    const FwmModelUse use = purpose == STEP ? FWM_CHANGES : FWM_READS;
    if (read_batch(self, &a, keys, values, query, answer, omega) == 0 && fwm_model_claim(self, use) == 0) {
        FwmModel *model = &self->model;
        Py_BEGIN_ALLOW_THREADS
        if (purpose == LOSS)
            loss = model->kernels->model.loss(model, &a.batch);
        else if (purpose == GRADIENTS)
            loss = model->kernels->model.gradients(model, &a.batch);
        else
            loss = model->kernels->model.step(model, &a.batch, lr);
        Py_END_ALLOW_THREADS
        out = purpose == GRADIENTS ? gradients(self) : PyFloat_FromDouble(loss);
        fwm_model_release(self);
    }
    release_batch(&a);
    return out && purpose == GRADIENTS ? Py_BuildValue("(dN)", loss, out) : out;
}

static PyObject *model_loss(PyObject *self, PyObject *args)
{
    return run_batch(self, args, "OOOOO:loss", LOSS);
}

static PyObject *model_loss_and_gradients(PyObject *self, PyObject *args)
{
    return run_batch(self, args, "OOOOO:loss_and_gradients", GRADIENTS);
}

static PyObject *model_step(PyObject *self, PyObject *args)
{
    return run_batch(self, args, "OOOOOd:step", STEP);
}

static PyObject *model_read_out(PyObject *object, PyObject *args)
{
    FwmModelObject *self = (FwmModelObject *)object;
    PyObject *keys, *values, *query, *omega, *y = NULL;
    if (!PyArg_ParseTuple(args, "OOOO:read_out", &keys, &values, &query, &omega))
        return NULL;
    BatchArrays a;
    if (read_batch(self, &a, keys, values, query, NULL, omega) == 0) {
        const npy_intp shape[] = {(npy_intp)a.batch.n, (npy_intp)self->model.sizes.n_keys};
        y = PyArray_SimpleNew(2, shape, self->type);
        if (y && fwm_model_claim(self, FWM_READS) == 0) {
            Py_BEGIN_ALLOW_THREADS
            self->model.kernels->model.read_out(&self->model, &a.batch, PyArray_DATA((PyArrayObject *)y));
            Py_END_ALLOW_THREADS
            fwm_model_release(self);
        } else {
            Py_CLEAR(y);
        }
    }
    release_batch(&a);
    return y;
}

FwmStream *fwm_model_claim_stream(const FwmModelObject *self, PyObject *given)
{
    FwmStream *stream = fwm_stream_of(given);
    if (!stream)
        return NULL;
    const FwmModelSizes *z = &self->model.sizes;
    if (stream->n_keys != z->n_keys || stream->seq_len != z->length || stream->batch_size > z->batch) {
        PyErr_SetString(PyExc_ValueError, "stream: expected one with the model's n_keys, replace and batch_size");
        return NULL;
    }
    return fwm_random_claim(given) < 0 ? NULL : stream;
}

static PyObject *model_evaluate(PyObject *object, PyObject *given)
{
    FwmModelObject *self = (FwmModelObject *)object;
    FwmStream *stream = fwm_model_claim_stream(self, given);
    if (!stream)
        return NULL;
    float loss = 0;
    int status = -1;
    if (fwm_model_claim(self, FWM_READS) == 0) {
        Py_BEGIN_ALLOW_THREADS
        status = fwm_evaluate(&self->model, stream, &loss);
        Py_END_ALLOW_THREADS
        fwm_model_release(self);
        if (status < 0)
            PyErr_NoMemory();
    }
    fwm_random_release(given);
    return status < 0 ? NULL : PyFloat_FromDouble(loss);
}

static PyMethodDef methods[] = {
    {"loss", model_loss, METH_VARARGS, NULL},
    {"loss_and_gradients", model_loss_and_gradients, METH_VARARGS, NULL},
    {"step", model_step, METH_VARARGS, NULL},
    {"read_out", model_read_out, METH_VARARGS, NULL},
    {"evaluate", model_evaluate, METH_O, NULL},
    {"snapshot", model_snapshot, METH_NOARGS, NULL},
    {"get_state", model_get_state, METH_NOARGS, NULL},
    {"set_state", model_set_state, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"parameters", model_parameters, NULL, NULL, NULL},
    {"steps", model_steps, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_new, model_new},
    {Py_tp_dealloc, model_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, properties},
    {Py_tp_doc, "The model of a run; see fwm_py.retrieval.Model."},
    {0, NULL},
};

int fwm_add_model_type(PyObject *module)
{
    PyType_Spec spec = {"fwm_py._core.Model", sizeof(FwmModelObject), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
                        slots};
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (!type)
        return -1;
    const int status = PyModule_AddObjectRef(module, "Model", type);
    Py_DECREF(type);
    return status;
}
