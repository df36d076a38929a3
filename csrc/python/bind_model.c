/* Model: the experiment's model as an object that owns its memory and hands out views of its parameters. One thread at
 * a time may use a model; a second one gets a RuntimeError. While it is trained, a callback may read it, and the run
 * goes on as if it had not. */
#include "api/dispatch.h"
#include "python/bindings.h"
#include "python/objects.h"
#include "retrieval/initial.h"
#include "retrieval/model.h"
#include "retrieval/train.h"
#include "runtime/threads.h"

typedef struct {
    FwmClaimed base;
    FwmModel model;
    int type;                     /* NPY_FLOAT or NPY_DOUBLE */
    bool in_callback;             /* of its training */
    bool nested;                  /* a call of that callback reads */
    FwmBlockSource source_before; /* where the training's draws go on after that call */
} ModelObject;

/* ---- life ---- */

enum { N_KEYS, HIDDEN_SIZE, BATCH_SIZE, READOUT, MAP, ARGUMENT, REPLACE, SEED, FAVOR_GENERATOR, REDRAWS, DTYPE };

static const char *const generators[] = {"mt19937", "philox", NULL};
static const char *const dtypes[] = {"float32", "float64", NULL};

static int choose_arguments(FwmArguments *a)
{
    FwmModelSizes *z = a->call;
    const FwmReadoutInfo *info = fwm_kernels_f32()->readout_info(z->readout);
    z->with_map = info->uses_map;
    z->with_beta = info->uses_beta;
    if (!z->with_map)
        a->absent |= 1u << MAP;
    return 0;
}

static const FwmArgument new_rows[] = {
    [N_KEYS] = {"n_keys", FWM_INTEGER, .low = 2, .high = 1 << 20, .at = FWM_AT(FwmModelSizes, n_keys)},
    [HIDDEN_SIZE] = {"hidden_size", FWM_INTEGER, .low = 1, .high = 1 << 16, .at = FWM_AT(FwmModelSizes, d)},
    [BATCH_SIZE] = {"batch_size", FWM_INTEGER, .low = 1, .high = 1 << 20, .at = FWM_AT(FwmModelSizes, batch)},
    [READOUT] = {"readout", FWM_ROW, .table = &fwm_readouts, .at = FWM_AT(FwmModelSizes, readout),
                 .then = choose_arguments},
    [MAP] = {"map", FWM_ROW, .table = &fwm_maps, .at = FWM_AT(FwmModelSizes, map)},
    [ARGUMENT] = {"argument", FWM_INTEGER, .low = 0, .high = 1 << 24},
    [REPLACE] = {"replace", FWM_FLAG, .required = true},
    [SEED] = {"seed", FWM_INTEGER, .low = 0, .high = 4294967295LL},
    [FAVOR_GENERATOR] = {"favor_generator", FWM_WORD, .words = generators},
    [REDRAWS] = {"redraws", FWM_FLAG, .required = true},
    [DTYPE] = {"dtype", FWM_WORD, .words = dtypes},
};

static FwmSignature of_new = {"Model", new_rows, FWM_LENGTH(new_rows), 0};

/* What no row says. */
static int complete_sizes(FwmModelSizes *z, const FwmArguments *a)
{
    z->length = a->values[REPLACE].flag ? 2 * z->n_keys : z->n_keys;
    if (!z->with_map || !fwm_kernels_f32()->map_info(z->map)->argument[0])
        return 0;
    z->argument = (size_t)a->values[ARGUMENT].integer;
    if (z->argument > 0)
        return 0;
    PyErr_SetString(PyExc_ValueError, "argument: got 0, expected at least 1");
    return -1;
}

/* The generator of the initial parameters, which FAVOR+ goes on with if it is not CUDA's. */
static int initialise(FwmModel *model, uint32_t seed, bool philox)
{
    FwmTorchCpu generator;
    fwm_torch_seed(&generator, seed);
    if (fwm_initial_parameters(model, &generator) < 0)
        return -1;
    model->omega_source = philox ? (FwmBlockSource){.kind = FWM_PHILOX, .philox = {.seed = seed}}
                                 : (FwmBlockSource){.kind = FWM_TORCH_CPU, .torch_cpu = generator};
    return 0;
}

static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    FwmModelSizes sizes = {0};
    FwmArguments a = {.call = &sizes};
    if (fwm_read_new(&a, &of_new, args, kwargs) < 0 || complete_sizes(&sizes, &a) < 0)
        return NULL;
    ModelObject *self = (ModelObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    const bool is_float32 = a.values[DTYPE].word == 0, philox = a.values[FAVOR_GENERATOR].word == 1;
    const FwmKernels *kernels = is_float32 ? fwm_kernels_f32() : fwm_kernels_f64();
    self->type = is_float32 ? NPY_FLOAT : NPY_DOUBLE;
    if (fwm_model_init(&self->model, kernels, &sizes) < 0 ||
        initialise(&self->model, (uint32_t)a.values[SEED].integer, philox) < 0) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    self->model.redraws = a.values[REDRAWS].flag;
    return (PyObject *)self;
}

static void model_dealloc(PyObject *self)
{
    fwm_model_free(&((ModelObject *)self)->model);
    fwm_free_object(self);
}

/* ---- claims ---- */

/* What a call does to the model. */
typedef enum { READS, CHANGES } Use;

static void release(ModelObject *self)
{
    if (self->nested) {
        self->model.omega_source = self->source_before;
        self->nested = false;
        self->in_callback = true;
    } else {
        atomic_store(&self->base.busy, false);
    }
}

/* The same for a call inside a callback of the training, on the scratch that the training has. */
static int claim_nested(ModelObject *self, Use use)
{
    const char *reason =
        self->base.thread != PyThread_get_thread_ident() ? "is in use by another thread"
        : !self->in_callback                             ? "is in use by a call that has not ended"
        : use == CHANGES ? "is being trained: on_evaluation and on_progress may read it, but neither step nor train it"
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

/* Claims the model for a call and makes room for it; 0, or -1 with an exception. */
static int claim(ModelObject *self, Use use)
{
    if (atomic_exchange(&self->base.busy, true))
        return claim_nested(self, use);
    self->base.thread = PyThread_get_thread_ident();
    if (fwm_model_reserve(&self->model) < 0) {
        release(self);
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

/* ---- parameters and gradients ---- */

/* A view into `numbers`, kept alive by the model. */
static PyObject *view_of(const ModelObject *self, const FwmParameter *p, void *numbers)
{
    const npy_intp size = (npy_intp)self->model.kernels->real_size;
    npy_intp shape[] = {(npy_intp)p->rows, (npy_intp)p->columns};
    npy_intp strides[] = {(npy_intp)p->row_stride * size, (npy_intp)p->column_stride * size};
    PyObject *view =
        PyArray_New(&PyArray_Type, p->columns ? 2 : 1, shape, self->type, strides,
                    (char *)numbers + (npy_intp)p->offset * size, 0, NPY_ARRAY_WRITEABLE | NPY_ARRAY_ALIGNED, NULL);
    if (view && PyArray_SetBaseObject((PyArrayObject *)view, Py_NewRef((PyObject *)self)) < 0)
        Py_CLEAR(view);
    return view;
}

static PyObject *parameter_of(const ModelObject *self, const FwmParameter *p)
{
    return view_of(self, p, self->model.numbers);
}

static PyObject *copy_of(const ModelObject *self, const FwmParameter *p)
{
    PyObject *view = parameter_of(self, p), *copy = view ? PyArray_NewCopy((PyArrayObject *)view, NPY_CORDER) : NULL;
    Py_XDECREF(view);
    return copy;
}

/* A copy of one gradient in the published shape. Rows that are not trained (embeddingK's values) are zero. */
static PyObject *gradient_of(const ModelObject *self, const FwmParameter *p)
{
    npy_intp shape[] = {(npy_intp)p->rows, (npy_intp)p->columns};
    PyObject *out = PyArray_ZEROS(p->columns ? 2 : 1, shape, self->type, 0);
    FwmParameter trained = *p;
    if (p->offset == self->model.embedding)
        trained.rows = self->model.sizes.n_keys;
    PyObject *from = out ? view_of(self, &trained, self->model.gradients) : NULL;
    PyObject *rows = from ? PySequence_GetSlice(out, 0, (Py_ssize_t)trained.rows) : NULL;
    if (!rows || PyArray_CopyInto((PyArrayObject *)rows, (PyArrayObject *)from) < 0)
        Py_CLEAR(out);
    Py_XDECREF(rows);
    Py_XDECREF(from);
    return out;
}

/* The arrays of the parameters by their names, or only of those that are trained. */
static PyObject *arrays_by_name(const ModelObject *self, bool trained,
                                PyObject *(*array_of)(const ModelObject *, const FwmParameter *))
{
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict && i < self->model.n_parameters; i++) {
        const FwmParameter *p = &self->model.parameters[i];
        if (trained && !p->trained)
            continue;
        PyObject *array = array_of(self, p);
        if (!array || PyDict_SetItemString(dict, p->name, array) < 0)
            Py_CLEAR(dict);
        Py_XDECREF(array);
    }
    return dict;
}

static PyObject *model_parameters(PyObject *self, void *Py_UNUSED(closure))
{
    return arrays_by_name((ModelObject *)self, false, parameter_of);
}

/* ---- batches ---- */

/* What the rows are read into. */
typedef struct {
    FwmBatch batch;
    const ModelObject *self;
} BatchCall;

#define AT(member) FWM_AT(BatchCall, batch.member)

enum { SIZES, KEYS, VALUES, QUERY, OMEGA, ANSWER, LR }; /* read_out takes those before ANSWER, step all */
enum { SIZE_B, SIZE_L, SIZE_N, SIZE_2N, SIZE_D, SIZE_M };

/* All letters but B are the model's. */
static int bind_sizes(FwmArguments *a)
{
    const ModelObject *self = ((BatchCall *)a->call)->self;
    const FwmModelSizes *z = &self->model.sizes;
    a->sizes[SIZE_L] = (npy_intp)z->length;
    a->sizes[SIZE_N] = (npy_intp)z->n_keys;
    a->sizes[SIZE_2N] = 2 * (npy_intp)z->n_keys;
    a->sizes[SIZE_D] = (npy_intp)z->d;
    a->sizes[SIZE_M] = (npy_intp)z->argument;
    if (!z->with_map || !fwm_kernels_f32()->map_info(z->map)->takes_omega)
        a->absent |= 1u << OMEGA;
    return 0;
}

static int check_batch(FwmArguments *a)
{
    const size_t most = ((BatchCall *)a->call)->self->model.sizes.batch;
    if (a->sizes[SIZE_B] >= 1 && (size_t)a->sizes[SIZE_B] <= most)
        return 0;
    PyErr_Format(PyExc_ValueError, "keys: got %zd sequences, expected 1..%zu, the batch size", a->sizes[SIZE_B], most);
    return -1;
}

static const FwmArgument batch_rows[] = {
    [SIZES] = {"", FWM_STEP, .then = bind_sizes},
    [KEYS] = {"keys", FWM_INDICES, "(B, L)", .below = "N", .at = AT(keys), .then = check_batch},
    [VALUES] = {"values", FWM_INDICES, "(B, L)", .from = "N", .below = "2N", .at = AT(values)},
    [QUERY] = {"query", FWM_INDICES, "(B,)", .below = "N", .at = AT(query)},
    [OMEGA] = {"omega", FWM_ARRAY, "(d, m)", .optional = true, .at = AT(omega), .stored = FWM_FLOAT32_OR_FLOAT64},
    [ANSWER] = {"answer", FWM_INDICES, "(B,)", .from = "N", .below = "2N", .at = AT(answer)},
    [LR] = {"lr", FWM_NUMBER, .required = true, .positive = true},
};

static const FwmSize batch_sizes[] = {[SIZE_B] = {"B", AT(n)}, [SIZE_L] = {"L"}, [SIZE_N] = {"N"},
                                      [SIZE_2N] = {"2N"},      [SIZE_D] = {"d"}, [SIZE_M] = {"m"}};

static const FwmBatch *batch_of(const FwmArguments *a)
{
    return &((const BatchCall *)a->call)->batch;
}

static PyObject *loss(ModelObject *self, FwmArguments *a)
{
    double mean;
    Py_BEGIN_ALLOW_THREADS
    mean = self->model.kernels->model.loss(&self->model, batch_of(a));
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(mean);
}

static PyObject *loss_and_gradients(ModelObject *self, FwmArguments *a)
{
    double mean;
    Py_BEGIN_ALLOW_THREADS
    mean = self->model.kernels->model.gradients(&self->model, batch_of(a));
    Py_END_ALLOW_THREADS
    return Py_BuildValue("(dN)", mean, arrays_by_name(self, true, gradient_of));
}

static PyObject *step(ModelObject *self, FwmArguments *a)
{
    double mean;
    Py_BEGIN_ALLOW_THREADS
    mean = self->model.kernels->model.step(&self->model, batch_of(a), a->values[LR].number);
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(mean);
}

static PyObject *read_out(ModelObject *self, FwmArguments *a)
{
    const npy_intp shape[] = {(npy_intp)batch_of(a)->n, (npy_intp)self->model.sizes.n_keys};
    PyObject *y = PyArray_SimpleNew(2, shape, self->type);
    if (!y)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    self->model.kernels->model.read_out(&self->model, batch_of(a), PyArray_DATA((PyArrayObject *)y));
    Py_END_ALLOW_THREADS
    return y;
}

/* The stream, claimed, if it fits the model; NULL with an exception. */
static FwmStream *claim_stream(const ModelObject *self, PyObject *given)
{
    FwmStream *stream = fwm_stream_of(given);
    if (!stream)
        return NULL;
    const FwmModelSizes *z = &self->model.sizes;
    if (stream->n_keys != z->n_keys || stream->seq_len != z->length || stream->batch_size > z->batch) {
        PyErr_SetString(PyExc_ValueError,
                        "stream: got another one, expected one with the model's n_keys, replace and batch_size");
        return NULL;
    }
    return fwm_claim(given) < 0 ? NULL : stream;
}

/* 0, or -1 with an exception. */
static int evaluate_on(ModelObject *self, PyObject *given, FwmCriterion criterion, FwmRecall *found)
{
    FwmStream *stream = claim_stream(self, given);
    if (!stream)
        return -1;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = fwm_evaluate(&self->model, stream, criterion, found);
    Py_END_ALLOW_THREADS
    fwm_release(given);
    if (status < 0)
        PyErr_NoMemory();
    return status;
}

static PyObject *evaluate(ModelObject *self, FwmArguments *a)
{
    FwmRecall found;
    return evaluate_on(self, a->given[0], FWM_AS_PUBLISHED, &found) < 0 ? NULL : PyFloat_FromDouble(found.loss);
}

static PyObject *recall(ModelObject *self, FwmArguments *a)
{
    FwmRecall found;
    if (evaluate_on(self, a->given[0], FWM_RECALL, &found) < 0)
        return NULL;
    return Py_BuildValue("(ddd)", found.loss, found.right, found.worst);
}

/* Copies of the parameters, which no other thread is training meanwhile. */
static PyObject *snapshot(ModelObject *self, FwmArguments *Py_UNUSED(a))
{
    return arrays_by_name(self, false, copy_of);
}

static PyObject *get_state(ModelObject *self, FwmArguments *Py_UNUSED(a))
{
    return fwm_model_state(&self->model, self->type);
}

static PyObject *set_state(ModelObject *self, FwmArguments *a)
{
    return fwm_set_model_state(&self->model, self->type, a->given[0]) < 0 ? NULL : Py_NewRef(Py_None);
}

/* ---- training, which calls back into Python ---- */

typedef struct {
    ModelObject *model;
    PyThreadState *state;
    PyObject *on_evaluation, *on_progress; /* or None */
    FwmCriterion criterion;
} Callbacks;

/* With the GIL for as long as it takes: signals are looked for while `polls`. 1 if the evaluation says that the
 * run has ended, else 0; -1 with an exception. */
static int call_back(Callbacks *callbacks, bool polls, uint64_t step, const FwmRecall *found)
{
    PyEval_RestoreThread(callbacks->state);
    PyObject *function = polls ? callbacks->on_progress : callbacks->on_evaluation;
    const char *format = !polls && callbacks->criterion == FWM_RECALL ? "Kddd" : "Kd";
    int status = polls ? PyErr_CheckSignals() : 0;
    if (status == 0 && function != Py_None) {
        callbacks->model->in_callback = true;
        PyObject *out =
            PyObject_CallFunction(function, format, (unsigned long long)step, found->loss, found->right, found->worst);
        callbacks->model->in_callback = false;
        status = !out ? -1 : polls ? 0 : PyObject_IsTrue(out);
        Py_XDECREF(out);
    }
    callbacks->state = PyEval_SaveThread();
    return status;
}

static int on_evaluation(void *context, uint64_t step, const FwmRecall *found)
{
    return call_back(context, false, step, found);
}

static int poll(void *context, uint64_t step, double loss)
{
    return call_back(context, true, step, &(FwmRecall){.loss = loss});
}

enum { STREAM, TRAIN_LR, MAX_STEPS, CRITERION, ON_EVALUATION, ON_PROGRESS };

static const char *const criteria[] = {"published", "recall", NULL}; /* as FwmCriterion */

static const FwmArgument train_rows[] = {
    [STREAM] = {"stream", FWM_OBJECT},
    [TRAIN_LR] = {"lr", FWM_NUMBER, .required = true, .positive = true},
    [MAX_STEPS] = {"max_steps", FWM_INTEGER, .low = 0, .high = 1LL << 62},
    [CRITERION] = {"criterion", FWM_WORD, .words = criteria},
    [ON_EVALUATION] = {"on_evaluation", FWM_OBJECT}, /* or None */
    [ON_PROGRESS] = {"on_progress", FWM_OBJECT},
};

static PyObject *train(ModelObject *self, FwmArguments *a)
{
    FwmStream *stream = claim_stream(self, a->given[STREAM]);
    if (!stream)
        return NULL;
    const FwmCriterion criterion = (FwmCriterion)a->values[CRITERION].word;
    Callbacks callbacks = {self, NULL, a->given[ON_EVALUATION], a->given[ON_PROGRESS], criterion};
    const FwmTrainCallbacks table = {&callbacks, on_evaluation, poll};
    callbacks.state = PyEval_SaveThread();
    const FwmTrainStatus status = fwm_train(&self->model, stream, a->values[TRAIN_LR].number,
                                            (uint64_t)a->values[MAX_STEPS].integer, criterion, &table);
    PyEval_RestoreThread(callbacks.state);
    fwm_release(a->given[STREAM]);
    if (status == FWM_TRAIN_NO_MEMORY)
        PyErr_NoMemory();
    return status == FWM_TRAIN_ENDED ? Py_NewRef(Py_None) : NULL;
}

/* ---- methods, each with the model claimed ---- */

typedef PyObject *(*Function)(ModelObject *, FwmArguments *);

static PyObject *call(PyObject *object, const FwmSignature *signature, Function function, Use use,
                      PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    ModelObject *self = (ModelObject *)object;
    BatchCall batch = {.self = self};
    FwmArguments a = {.call = &batch, .type = self->type};
    PyObject *result = NULL;
    if (fwm_read_arguments(&a, signature, args, n, names) == 0 && claim(self, use) == 0) {
        result = function(self, &a);
        release(self);
    }
    fwm_release_arguments(&a);
    return result;
}

/* The signature of a method, and its C function. */
#define METHOD(name, use, ...)                                                                                         \
    static FwmSignature of_##name = {#name, __VA_ARGS__};                                                              \
    static PyObject *model_##name(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names)                \
    {                                                                                                                  \
        return call(self, &of_##name, name, use, args, n, names);                                                      \
    }

#define BATCH_ROWS(n) batch_rows, n, 0, batch_sizes, FWM_LENGTH(batch_sizes)

static const FwmArgument stream_rows[] = {{"stream", FWM_OBJECT}}, state_rows[] = {{"state", FWM_OBJECT}};

METHOD(loss, READS, BATCH_ROWS(LR))
METHOD(loss_and_gradients, READS, BATCH_ROWS(LR))
METHOD(step, CHANGES, BATCH_ROWS(LR + 1))
METHOD(read_out, READS, BATCH_ROWS(ANSWER))
METHOD(evaluate, READS, stream_rows, 1, 1)
METHOD(recall, READS, stream_rows, 1, 1)
METHOD(train, CHANGES, train_rows, FWM_LENGTH(train_rows))
METHOD(snapshot, READS, NULL)
METHOD(get_state, READS, NULL)
METHOD(set_state, CHANGES, state_rows, 1, 1)

#define ROW(name) FWM_METHOD_ROW(#name, model_##name, NULL)

static PyMethodDef methods[] = {ROW(loss),
                                ROW(loss_and_gradients),
                                ROW(step),
                                ROW(read_out),
                                ROW(evaluate),
                                ROW(recall),
                                ROW(snapshot),
                                ROW(train),
                                ROW(get_state),
                                ROW(set_state),
                                {NULL, NULL, 0, NULL}};

static PyGetSetDef properties[] = {{"parameters", model_parameters, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};

static PyMemberDef members[] = {{"steps", T_ULONGLONG, offsetof(ModelObject, model.steps), READONLY, NULL},
                                {NULL, 0, 0, 0, NULL}};

static PyType_Slot slots[] = {{Py_tp_new, model_new},
                              {Py_tp_dealloc, model_dealloc},
                              {Py_tp_methods, methods},
                              {Py_tp_getset, properties},
                              {Py_tp_members, members},
                              {Py_tp_doc, "The model of a run; see fwm_py.experiments.retrieval.Model."},
                              {0, NULL}};

int fwm_add_model(PyObject *module)
{
    FwmSignature *const signatures[] = {
        &of_new,    &of_loss,  &of_loss_and_gradients, &of_step,      &of_read_out, &of_evaluate,
        &of_recall, &of_train, &of_snapshot,           &of_get_state, &of_set_state};
    return fwm_add_type(module, "fwm_py._core.Model", sizeof(ModelObject), slots, signatures, FWM_LENGTH(signatures));
}
