/* Stream: an extension type around the data of csrc/retrieval/stream. A draw that fails for want of memory leaves the
 * stream as it was. */
#include "python/bindings.h"
#include "python/objects.h"

#define HIGHEST_SEED 4294967295LL
#define HIGHEST_N_KEYS 1073741823LL /* 2N is a length, held as int32 */
#define HIGHEST_LENGTH (PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(int64_t))

typedef struct {
    FwmClaimed base;
    FwmStream stream;
    uint32_t seed;
} StreamObject;

static FwmStream *stream_in(PyObject *self)
{
    return &((StreamObject *)self)->stream;
}

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
    if (!self)
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
    fwm_stream_free(stream_in(self));
    fwm_free_object(self);
}

/* drawn -> an array of int64 of that shape, with `offset` added. */
static PyObject *tokens(const int32_t *drawn, int rank, const npy_intp *shape, size_t offset)
{
    PyObject *out = PyArray_SimpleNew(rank, shape, NPY_INT64);
    if (!out)
        return NULL;
    int64_t *wide = PyArray_DATA((PyArrayObject *)out);
    for (npy_intp i = 0; i < PyArray_SIZE((PyArrayObject *)out); i++)
        wide[i] = drawn[i] + (int64_t)offset;
    return out;
}

/* A batch, or a sequence of an evaluation if it is `asked`: a tuple of keys, values, queries and answers as the
 * published program's tokens, in which a value is N above its number. */
static PyObject *draw_tokens(FwmStream *stream, const FwmAsked *asked)
{
    const size_t N = stream->n_keys, B = stream->batch_size, L = stream->seq_len, n = asked ? asked->length : B * L,
                 most_queries = asked ? asked->most_queries : B;
    int32_t *keys = PyMem_Malloc(2 * (n + most_queries) * sizeof *keys);
    if (!keys)
        return PyErr_NoMemory();
    int32_t *values = keys + n, *queries = values + n, *answers = queries + most_queries;
    npy_intp n_queries = (npy_intp)B;
    if (asked)
        n_queries = (npy_intp)fwm_stream_asked_sequence(stream, *asked, keys, values, queries, answers);
    else
        fwm_stream_batch(stream, keys, values, queries, answers);
    const npy_intp of_sequence[] = {(npy_intp)n}, of_batch[] = {(npy_intp)B, (npy_intp)L};
    const npy_intp *shape = asked ? of_sequence : of_batch;
    const int rank = asked ? 1 : 2;
    PyObject *tuple = Py_BuildValue("(NNNN)", tokens(keys, rank, shape, 0), tokens(values, rank, shape, N),
                                    tokens(queries, 1, &n_queries, 0), tokens(answers, 1, &n_queries, N));
    PyMem_Free(keys);
    return tuple;
}

static PyObject *draw_batch(PyObject *self, FwmArguments *Py_UNUSED(a))
{
    FwmStream *stream = stream_in(self);
    const FwmMT19937 before = stream->bits;
    PyObject *batch = draw_tokens(stream, NULL);
    if (!batch)
        stream->bits = before;
    return batch;
}

static PyObject *draw_sequences(FwmStream *stream, FwmAsked asked)
{
    const FwmMT19937 before = stream->bits;
    PyObject *sequences = PyList_New(FWM_EVALUATION_SEQUENCES);
    for (int i = 0; sequences && i < FWM_EVALUATION_SEQUENCES; i++) {
        PyObject *sequence = draw_tokens(stream, &asked);
        if (!sequence)
            Py_CLEAR(sequences);
        else
            PyList_SET_ITEM(sequences, i, sequence);
    }
    if (!sequences)
        stream->bits = before;
    return sequences;
}

static PyObject *draw_evaluation(PyObject *self, FwmArguments *Py_UNUSED(a))
{
    return draw_sequences(stream_in(self), fwm_stream_as_published(stream_in(self)));
}

static PyObject *draw_recall(PyObject *self, FwmArguments *Py_UNUSED(a))
{
    return draw_sequences(stream_in(self), fwm_stream_recall(stream_in(self)));
}

/* Pickling and copying: how to make it anew, and its state. */
static PyObject *reduce(PyObject *self, FwmArguments *Py_UNUSED(a))
{
    const FwmStream *stream = stream_in(self);
    return Py_BuildValue("O(knnO)N", (PyObject *)Py_TYPE(self), (unsigned long)((StreamObject *)self)->seed,
                         (Py_ssize_t)stream->n_keys, (Py_ssize_t)stream->batch_size,
                         stream->replace ? Py_True : Py_False, fwm_words_state(&stream->bits));
}

static PyObject *set_state(PyObject *self, FwmArguments *a)
{
    return fwm_set_words_state(&stream_in(self)->bits, a->given[0]) < 0 ? NULL : Py_NewRef(Py_None);
}

FWM_CLAIMED_METHOD(stream, batch, draw_batch)
FWM_CLAIMED_METHOD(stream, evaluation, draw_evaluation)
FWM_CLAIMED_METHOD(stream, recall, draw_recall)
FWM_CLAIMED_METHOD(stream, __reduce__, reduce)
FWM_CLAIMED_METHOD(stream, __setstate__, set_state, {"state", FWM_OBJECT})

static PyObject *stream_repr(PyObject *self)
{
    const FwmStream *stream = stream_in(self);
    return PyUnicode_FromFormat("<Stream of seed %lu, %zu keys, %zu sequences a batch, %s>",
                                (unsigned long)((StreamObject *)self)->seed, stream->n_keys, stream->batch_size,
                                stream->replace ? "with replacement" : "without replacement");
}

PyDoc_STRVAR(stream_doc,
             "Stream(seed, n_keys, batch_size, replace)\n--\n\n"
             "The training and evaluation data of one run, from NumPy's RandomState(seed).\n\n"
             "Keys are the tokens 0..n_keys-1, values n_keys..2*n_keys-1. An evaluation consumes the stream, and the\n"
             "next batch goes on from there.");

static PyMethodDef stream_methods[] = {
    FWM_CLAIMED_ROW(
        stream, batch,
        "batch($self, /)\n--\n\n"
        "Draw (keys (B, L), values (B, L), query (B,), answer (B,)) as int64; L is n_keys, with replacement twice\n"
        "that."),
    FWM_CLAIMED_ROW(
        stream, evaluation,
        "evaluation($self, /)\n--\n\n"
        "Draw 20 sequences (keys (N,), values (N,), queries (n,), answers (n,)) as int64; the queries are the\n"
        "distinct keys, ascending, at most 200."),
    FWM_CLAIMED_ROW(
        stream, recall,
        "recall($self, /)\n--\n\n"
        "Draw 20 sequences (keys (L,), values (L,), queries (n,), answers (n,)) as int64, as long as a batch's; the\n"
        "queries are all distinct keys, ascending."),
    FWM_CLAIMED_ROW(stream, __reduce__, NULL),
    FWM_CLAIMED_ROW(stream, __setstate__, NULL),
    {NULL, NULL, 0, NULL},
};

static PyType_Slot stream_slots[] = {
    {Py_tp_doc, (void *)stream_doc}, {Py_tp_new, stream_new},   {Py_tp_dealloc, stream_dealloc},
    {Py_tp_methods, stream_methods}, {Py_tp_repr, stream_repr}, {0, NULL},
};

int fwm_add_stream(PyObject *module)
{
    FwmSignature *const signatures[] = {&signature,        &of_stream_batch,      &of_stream_evaluation,
                                        &of_stream_recall, &of_stream___reduce__, &of_stream___setstate__};
    return fwm_add_type(module, "fwm_py._core.Stream", sizeof(StreamObject), stream_slots, signatures,
                        FWM_LENGTH(signatures));
}

FwmStream *fwm_stream_of(PyObject *object)
{
    if (Py_TYPE(object)->tp_dealloc == stream_dealloc)
        return stream_in(object);
    PyErr_Format(PyExc_TypeError, "stream: got %.100s, expected a Stream", Py_TYPE(object)->tp_name);
    return NULL;
}
