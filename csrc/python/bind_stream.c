/* Stream: an extension type around the data of csrc/retrieval/stream. A draw that fails for want of memory leaves the
 * stream as it was. */
#include "python/bind_stream.h"

#include "python/arguments.h"
#include "python/bindings.h"
#include "python/claim.h"
#include "python/states.h"

#define HIGHEST_SEED 4294967295LL
#define HIGHEST_N_KEYS 1073741823LL /* 2N is a length, held as int32 */
#define HIGHEST_LENGTH (PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(int64_t))

typedef struct {
    FwmClaimed base;
    FwmStream stream;
    uint32_t seed;
} StreamObject;

enum { SEED, N_KEYS, BATCH_SIZE, REPLACE };

static const FwmArgument arguments[] = {
    [SEED] = {"seed", FWM_INTEGER, .low = 0, .high = HIGHEST_SEED},
    [N_KEYS] = {"n_keys", FWM_INTEGER, .low = 1, .high = HIGHEST_N_KEYS},
    [BATCH_SIZE] = {"batch_size", FWM_INTEGER, .low = 1, .high = HIGHEST_LENGTH},
    [REPLACE] = {"replace", FWM_FLAG, .required = true},
};

static FwmSignature signature = {"Stream", arguments, FWM_LENGTH(arguments), FWM_LENGTH(arguments)};

static PyObject *stream_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    FwmArguments a = {0};
    if (fwm_read_new(&a, &signature, args, kwargs) < 0)
        return NULL;
    const long long seed = a.values[SEED].integer, n_keys = a.values[N_KEYS].integer,
                    batch_size = a.values[BATCH_SIZE].integer, most = HIGHEST_LENGTH / (2 * n_keys);
    const bool replace = a.values[REPLACE].flag;
    if (batch_size > most)
        return PyErr_Format(PyExc_ValueError, "batch_size: got %lld, expected an integer in 1..%lld", batch_size, most);
    StreamObject *self = (StreamObject *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->seed = (uint32_t)seed;
    if (fwm_stream_init(&self->stream, (uint32_t)seed, (size_t)n_keys, (size_t)batch_size, replace) < 0) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void stream_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    fwm_stream_free(&((StreamObject *)self)->stream);
    type->tp_free(self);
    Py_DECREF(type);
}

/* drawn -> an array of int64 of that shape, with `offset` added. */
static PyObject *tokens(const int32_t *drawn, int rank, const npy_intp *shape, size_t offset)
{
    PyObject *out = PyArray_SimpleNew(rank, shape, NPY_INT64);
    if (out == NULL)
        return NULL;
    int64_t *wide = PyArray_DATA((PyArrayObject *)out);
    for (npy_intp i = 0; i < PyArray_SIZE((PyArrayObject *)out); i++)
        wide[i] = drawn[i] + (int64_t)offset;
    return out;
}

/* keys, values (shape); queries, answers (n_queries) -> a tuple of the four as the published program's
 * tokens, in which a value is N above its number. */
static PyObject *token_tuple(const FwmStream *stream, const int32_t *keys, const int32_t *values,
                             const int32_t *queries, const int32_t *answers, int rank, const npy_intp *shape,
                             npy_intp n_queries)
{
    PyObject *tuple = PyTuple_New(4);
    if (tuple == NULL)
        return NULL;
    PyTuple_SET_ITEM(tuple, 0, tokens(keys, rank, shape, 0));
    PyTuple_SET_ITEM(tuple, 1, tokens(values, rank, shape, stream->n_keys));
    PyTuple_SET_ITEM(tuple, 2, tokens(queries, 1, &n_queries, 0));
    PyTuple_SET_ITEM(tuple, 3, tokens(answers, 1, &n_queries, stream->n_keys));
    for (int i = 0; i < 4; i++) {
        if (PyTuple_GET_ITEM(tuple, i) == NULL) {
            Py_DECREF(tuple);
            return NULL;
        }
    }
    return tuple;
}

static PyObject *batch_of(FwmStream *stream)
{
    size_t B = stream->batch_size, L = stream->seq_len;
    int32_t *keys = PyMem_Malloc((2 * B * L + 2 * B) * sizeof *keys);
    if (keys == NULL)
        return PyErr_NoMemory();
    int32_t *values = keys + B * L, *query = values + B * L, *answer = query + B;
    fwm_stream_batch(stream, keys, values, query, answer);
    npy_intp shape[2] = {(npy_intp)B, (npy_intp)L};
    PyObject *batch = token_tuple(stream, keys, values, query, answer, 2, shape, shape[0]);
    PyMem_Free(keys);
    return batch;
}

static PyObject *evaluation_sequence(FwmStream *stream)
{
    size_t N = stream->n_keys;
    int32_t *keys = PyMem_Malloc(4 * N * sizeof *keys);
    if (keys == NULL)
        return PyErr_NoMemory();
    int32_t *values = keys + N, *queries = values + N, *answers = queries + N;
    size_t n_queries = fwm_stream_evaluation_sequence(stream, keys, values, queries, answers);
    npy_intp shape = (npy_intp)N;
    PyObject *sequence = token_tuple(stream, keys, values, queries, answers, 1, &shape, (npy_intp)n_queries);
    PyMem_Free(keys);
    return sequence;
}

static PyObject *evaluation_of(FwmStream *stream)
{
    PyObject *sequences = PyList_New(FWM_EVALUATION_SEQUENCES);
    for (int i = 0; sequences != NULL && i < FWM_EVALUATION_SEQUENCES; i++) {
        PyObject *sequence = evaluation_sequence(stream);
        if (sequence == NULL)
            Py_CLEAR(sequences);
        else
            PyList_SET_ITEM(sequences, i, sequence);
    }
    return sequences;
}

static PyObject *draw_from_stream(PyObject *self, PyObject *(*draw)(FwmStream *))
{
    if (fwm_claim(self) < 0)
        return NULL;
    FwmStream *stream = &((StreamObject *)self)->stream;
    FwmMT19937 before = stream->bits;
    PyObject *drawn = draw(stream);
    if (drawn == NULL)
        stream->bits = before;
    fwm_release(self);
    return drawn;
}

static PyObject *stream_batch(PyObject *self, PyObject *Py_UNUSED(args))
{
    return draw_from_stream(self, batch_of);
}

static PyObject *stream_evaluation(PyObject *self, PyObject *Py_UNUSED(args))
{
    return draw_from_stream(self, evaluation_of);
}

/* Pickling and copying: how to make it anew, and its state. */
static PyObject *stream_reduce(PyObject *self, PyObject *Py_UNUSED(args))
{
    const FwmStream *stream = &((StreamObject *)self)->stream;
    if (fwm_claim(self) < 0)
        return NULL;
    PyObject *state = fwm_words_state(&stream->bits);
    fwm_release(self);
    return Py_BuildValue("O(knnO)N", (PyObject *)Py_TYPE(self), (unsigned long)((StreamObject *)self)->seed,
                         (Py_ssize_t)stream->n_keys, (Py_ssize_t)stream->batch_size,
                         stream->replace ? Py_True : Py_False, state);
}

static PyObject *stream_setstate(PyObject *self, PyObject *state)
{
    if (fwm_claim(self) < 0)
        return NULL;
    const int status = fwm_set_words_state(&((StreamObject *)self)->stream.bits, state);
    fwm_release(self);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *stream_repr(PyObject *self)
{
    const FwmStream *stream = &((StreamObject *)self)->stream;
    return PyUnicode_FromFormat("<Stream of seed %lu, %zu keys, %zu sequences a batch, %s>",
                                (unsigned long)((StreamObject *)self)->seed, stream->n_keys, stream->batch_size,
                                stream->replace ? "with replacement" : "without replacement");
}

PyDoc_STRVAR(stream_doc,
             "Stream(seed, n_keys, batch_size, replace)\n--\n\n"
             "The training and evaluation data of one run, from NumPy's RandomState(seed).\n\n"
             "Keys are the tokens 0..n_keys-1, values n_keys..2*n_keys-1. An evaluation consumes the stream, and the\n"
             "next batch goes on from there.");

PyDoc_STRVAR(
    stream_batch_doc,
    "batch($self, /)\n--\n\n"
    "Draw (keys (B, L), values (B, L), query (B,), answer (B,)) as int64; L is n_keys, with replacement twice\n"
    "that.");

PyDoc_STRVAR(stream_evaluation_doc,
             "evaluation($self, /)\n--\n\n"
             "Draw 20 sequences (keys (N,), values (N,), queries (n,), answers (n,)) as int64; the queries are the\n"
             "distinct keys, ascending, at most 200.");

static PyMethodDef stream_methods[] = {
    {"batch", stream_batch, METH_NOARGS, stream_batch_doc},
    {"evaluation", stream_evaluation, METH_NOARGS, stream_evaluation_doc},
    {"__reduce__", stream_reduce, METH_NOARGS, NULL},
    {"__setstate__", stream_setstate, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, (void *)stream_doc}, {Py_tp_new, stream_new},   {Py_tp_dealloc, stream_dealloc},
    {Py_tp_methods, stream_methods}, {Py_tp_repr, stream_repr}, {0, NULL},
};

int fwm_add_stream_type(PyObject *module)
{
    PyType_Spec stream = {"fwm_py._core.Stream", sizeof(StreamObject), 0, FWM_TYPE_FLAGS, stream_slots};
    return fwm_prepare(&signature) < 0 ? -1 : fwm_add_type(module, &stream);
}

FwmStream *fwm_stream_of(PyObject *object)
{
    if (Py_TYPE(object)->tp_dealloc == stream_dealloc)
        return &((StreamObject *)object)->stream;
    PyErr_Format(PyExc_TypeError, "stream: got %.100s, expected a Stream", Py_TYPE(object)->tp_name);
    return NULL;
}
