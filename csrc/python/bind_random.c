/* Philox and MT19937: extension types around the generators of csrc/random. A draw that fails for want of memory leaves
 * its generator as it was. */
#include "python/bind_random.h"

#include <math.h>

#include "python/arguments.h"
#include "python/bindings.h"
#include "python/claim.h"
#include "python/states.h"
#include "random/numpy_legacy.h"

#define HIGHEST_POPULATION 2147483647LL /* permutations are held as int32 */
#define HIGHEST_WORD 4294967295LL
#define HIGHEST_LENGTH (PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(int64_t))

typedef struct {
    FwmClaimed base;
    FwmBlockSource source;
    uint32_t seed;
} SourceObject; /* Philox or MT19937, by source.kind */

/* ---- arguments ---- */

#define SIGNATURE(name, rows) {name, rows, FWM_LENGTH(rows), FWM_LENGTH(rows)}

static const FwmArgument seed_rows[] = {{"seed", FWM_INTEGER, .low = 0, .high = HIGHEST_WORD}};
static const FwmArgument length_rows[] = {{"n", FWM_INTEGER, .low = 0, .high = HIGHEST_LENGTH}};
static const FwmArgument block_rows[] = {{"n", FWM_INTEGER, .low = 0, .high = HIGHEST_WORD}};
static const FwmArgument max_rows[] = {{"max", FWM_INTEGER, .low = 0, .high = HIGHEST_WORD}};
static const FwmArgument population_rows[] = {{"n", FWM_INTEGER, .low = 0, .high = HIGHEST_POPULATION}};
static const FwmArgument uniform_rows[] = {{"n", FWM_INTEGER, .low = 0, .high = HIGHEST_LENGTH},
                                           {"low", FWM_NUMBER, .preset = 0},
                                           {"high", FWM_NUMBER, .preset = 1}};
static const FwmArgument choice_rows[] = {{"n", FWM_INTEGER, .low = 1, .high = HIGHEST_POPULATION},
                                          {"size", FWM_INTEGER, .low = 0, .high = HIGHEST_LENGTH},
                                          {"replace", FWM_FLAG, .required = true}};

static FwmSignature of_philox = SIGNATURE("Philox", seed_rows), of_mt19937 = SIGNATURE("MT19937", seed_rows),
                    of_normal = SIGNATURE("normal", length_rows), of_normal_block = SIGNATURE("normal", block_rows),
                    of_uint32 = SIGNATURE("uint32", length_rows), of_uniform = SIGNATURE("uniform", uniform_rows),
                    of_bounded = SIGNATURE("bounded", max_rows),
                    of_permutation = SIGNATURE("permutation", population_rows),
                    of_choice = SIGNATURE("choice", choice_rows);

static int prepare(void)
{
    FwmSignature *const all[] = {&of_philox,  &of_mt19937, &of_normal,      &of_normal_block, &of_uint32,
                                 &of_uniform, &of_bounded, &of_permutation, &of_choice};
    for (size_t i = 0; i < FWM_LENGTH(all); i++)
        if (fwm_prepare(all[i]) < 0)
            return -1;
    return 0;
}

/* The integer that is a method's one argument; -1 with an exception. */
static long long read_integer(const FwmSignature *signature, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    FwmArguments a = {0};
    return fwm_read_arguments(&a, signature, args, n, names) < 0 ? -1 : a.values[0].integer;
}

static PyObject *new_vector(npy_intp length, int type)
{
    return PyArray_SimpleNew(1, &length, type);
}

static void *data_of(PyObject *array)
{
    return PyArray_DATA((PyArrayObject *)array);
}

/* ---- Philox and MT19937 ---- */

static PyObject *new_source(PyTypeObject *type, PyObject *args, PyObject *kwargs, const FwmSignature *signature)
{
    FwmArguments a = {0};
    if (fwm_read_new(&a, signature, args, kwargs) < 0)
        return NULL;
    PyObject *self = type->tp_alloc(type, 0);
    if (self != NULL)
        ((SourceObject *)self)->seed = (uint32_t)a.values[0].integer;
    return self;
}

static void source_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static FwmBlockSource *source_of(PyObject *self)
{
    return &((SourceObject *)self)->source;
}

static PyObject *philox_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *self = new_source(type, args, kwargs, &of_philox);
    if (self != NULL) {
        source_of(self)->kind = FWM_PHILOX;
        source_of(self)->philox = (FwmPhilox){.seed = ((SourceObject *)self)->seed, .next_block = 0};
    }
    return self;
}

static PyObject *mt19937_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    PyObject *self = new_source(type, args, kwargs, &of_mt19937);
    if (self != NULL) {
        source_of(self)->kind = FWM_TORCH_CPU;
        fwm_torch_seed(&source_of(self)->torch_cpu, ((SourceObject *)self)->seed);
    }
    return self;
}

static PyObject *source_normal(PyObject *self, PyObject *const *args, Py_ssize_t n_args, PyObject *names)
{
    const bool is_block = source_of(self)->kind == FWM_PHILOX;
    const long long n = read_integer(is_block ? &of_normal_block : &of_normal, args, n_args, names);
    if (n < 0 || fwm_claim(self) < 0)
        return NULL;
    PyObject *out = new_vector((npy_intp)n, NPY_FLOAT32);
    if (out != NULL)
        fwm_next_normal_block(source_of(self), (size_t)n, data_of(out));
    fwm_release(self);
    return out;
}

/* Pickling and copying: how to make it anew, and its state. */
static PyObject *source_reduce(PyObject *self, PyObject *Py_UNUSED(args))
{
    if (fwm_claim(self) < 0)
        return NULL;
    PyObject *state = fwm_source_state(source_of(self));
    fwm_release(self);
    return Py_BuildValue("O(k)N", (PyObject *)Py_TYPE(self), (unsigned long)((SourceObject *)self)->seed, state);
}

static PyObject *source_setstate(PyObject *self, PyObject *state)
{
    if (fwm_claim(self) < 0)
        return NULL;
    const int status = fwm_set_source_state(source_of(self), state);
    fwm_release(self);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *source_repr(PyObject *self)
{
    const FwmPhilox *philox = &source_of(self)->philox;
    if (source_of(self)->kind == FWM_TORCH_CPU)
        return PyUnicode_FromFormat("<MT19937 of seed %lu>", (unsigned long)((SourceObject *)self)->seed);
    return PyUnicode_FromFormat("<Philox of seed %llu, %lu blocks drawn>", (unsigned long long)philox->seed,
                                (unsigned long)philox->next_block);
}

static PyObject *philox_seed(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(source_of(self)->philox.seed);
}

static PyObject *philox_blocks_drawn(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(source_of(self)->philox.next_block);
}

static FwmMT19937 *bits_of(PyObject *self)
{
    return &source_of(self)->torch_cpu.bits;
}

static PyObject *mt19937_uint32(PyObject *self, PyObject *const *args, Py_ssize_t n_args, PyObject *names)
{
    const long long n = read_integer(&of_uint32, args, n_args, names);
    if (n < 0 || fwm_claim(self) < 0)
        return NULL;
    PyObject *out = new_vector((npy_intp)n, NPY_UINT32);
    uint32_t *words = out != NULL ? data_of(out) : NULL;
    for (long long i = 0; out != NULL && i < n; i++)
        words[i] = fwm_mt19937_next(bits_of(self));
    fwm_release(self);
    return out;
}

static PyObject *mt19937_uniform(PyObject *self, PyObject *const *args, Py_ssize_t n_args, PyObject *names)
{
    FwmArguments a = {.type = NPY_FLOAT};
    if (fwm_read_arguments(&a, &of_uniform, args, n_args, names) < 0)
        return NULL;
    const long long n = a.values[0].integer;
    const float low = (float)a.values[1].number, high = (float)a.values[2].number;
    if (low > high || !isfinite(high - low)) {
        PyErr_Format(PyExc_ValueError, "low: got %s, expected %s",
                     low > high ? "a number above high" : "a number too far from high",
                     low > high ? "one that is not" : "a finite difference in float32");
        return NULL;
    }
    if (fwm_claim(self) < 0)
        return NULL;
    PyObject *out = new_vector((npy_intp)n, NPY_FLOAT32);
    if (out != NULL)
        fwm_torch_uniform(&source_of(self)->torch_cpu, (size_t)n, low, high, data_of(out));
    fwm_release(self);
    return out;
}

static PyObject *mt19937_bounded(PyObject *self, PyObject *const *args, Py_ssize_t n_args, PyObject *names)
{
    const long long max = read_integer(&of_bounded, args, n_args, names);
    if (max < 0 || fwm_claim(self) < 0)
        return NULL;
    const uint32_t drawn = fwm_numpy_bounded(bits_of(self), (uint32_t)max);
    fwm_release(self);
    return PyLong_FromUnsignedLong(drawn);
}

/* choice(n, size, replace) as int64; a permutation is the choice of all n without replacement. */
static PyObject *choice(PyObject *self, uint32_t n, Py_ssize_t size, bool replace)
{
    size_t n_scratch = !replace && size < (Py_ssize_t)n ? n : 0;
    PyObject *out = new_vector(size, NPY_INT64);
    if (out == NULL)
        return NULL;
    int32_t *drawn = PyMem_Malloc(((size_t)size + n_scratch) * sizeof *drawn);
    if (drawn == NULL)
        PyErr_NoMemory();
    if (drawn == NULL || fwm_claim(self) < 0) {
        PyMem_Free(drawn);
        Py_DECREF(out);
        return NULL;
    }
    fwm_numpy_choice(bits_of(self), n, (size_t)size, replace, drawn, drawn + size);
    fwm_release(self);
    int64_t *wide = data_of(out);
    for (Py_ssize_t i = 0; i < size; i++)
        wide[i] = drawn[i];
    PyMem_Free(drawn);
    return out;
}

static PyObject *mt19937_permutation(PyObject *self, PyObject *const *args, Py_ssize_t n_args, PyObject *names)
{
    const long long n = read_integer(&of_permutation, args, n_args, names);
    if (n < 0)
        return NULL;
    return choice(self, (uint32_t)n, (Py_ssize_t)n, false);
}

static PyObject *mt19937_choice(PyObject *self, PyObject *const *args, Py_ssize_t n_args, PyObject *names)
{
    FwmArguments a = {0};
    if (fwm_read_arguments(&a, &of_choice, args, n_args, names) < 0)
        return NULL;
    const long long n = a.values[0].integer, size = a.values[1].integer;
    const bool replace = a.values[2].flag;
    if (!replace && size > n) {
        PyErr_Format(PyExc_ValueError, "size: got %lld, expected at most the %lld of n, without replacement", size, n);
        return NULL;
    }
    return choice(self, (uint32_t)n, (Py_ssize_t)size, replace);
}

PyDoc_STRVAR(
    philox_doc,
    "Philox(seed)\n--\n\n"
    "Blocks of standard normals as torch draws them on CUDA.\n\n"
    "Philox4x32-10 and a Box-Muller transform in float32; the published FAVOR+ runs took their features from\n"
    "it. The blocks of a seed never change.\n\n"
    "Parameters\n----------\nseed : int\n    0..2**32 - 1.\n\n"
    "Raises\n------\nTypeError, ValueError\n    If the seed is no such integer.\n\n"
    "Notes\n-----\n"
    "Element i of block j depends on (seed, j, i) alone. After ``torch.cuda.manual_seed(seed)`` the calls of\n"
    "``torch.randn(64, 64, device=\"cuda\")`` give these blocks, but for the last bits of CUDA's logarithm and\n"
    "sine. Source: Salmon, Moraes, Dror, Shaw, \"Parallel random numbers: as easy as 1, 2, 3\" (2011).");

PyDoc_STRVAR(philox_normal_doc, "normal($self, /, n)\n--\n\n"
                                "Draw the next block: n standard normals, (n,) float32, n < 2**32.");

#define STATE_METHODS                                                                                                  \
    {"__reduce__", source_reduce, METH_NOARGS, NULL},                                                                  \
    {                                                                                                                  \
        "__setstate__", source_setstate, METH_O, NULL                                                                  \
    }

static PyMethodDef philox_methods[] = {
    STATE_METHODS,
    {"normal", (PyCFunction)(void (*)(void))source_normal, METH_FASTCALL | METH_KEYWORDS, philox_normal_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef philox_getset[] = {
    {"seed", philox_seed, NULL, "The seed (int).", NULL},
    {"blocks_drawn", philox_blocks_drawn, NULL, "The number of blocks drawn since seeding (int).", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(
    mt19937_doc,
    "MT19937(seed)\n--\n\n"
    "The Mersenne Twister, with the draws that torch's CPU generator and NumPy's RandomState make of it.\n\n"
    "One stream of 32-bit words serves all methods, in the order of the calls. The draws of a seed never\n"
    "change.\n\n"
    "Parameters\n----------\nseed : int\n    0..2**32 - 1.\n\n"
    "Raises\n------\nTypeError, ValueError\n    If the seed is no such integer.\n\n"
    "Notes\n-----\n"
    "``uniform`` and ``normal`` equal ``torch.empty(n).uniform_(low, high)`` and ``torch.randn(n)`` to the bit,\n"
    "after ``torch.manual_seed(seed)`` on a CPU with AVX2. ``bounded``, ``permutation`` and ``choice`` equal\n"
    "those of ``numpy.random.RandomState(seed)``. Source: Matsumoto, Nishimura, \"Mersenne Twister\" (1998).");

PyDoc_STRVAR(mt19937_uint32_doc, "uint32($self, /, n)\n--\n\nDraw n words, (n,) uint32.");

PyDoc_STRVAR(mt19937_uniform_doc,
             "uniform($self, /, n, low=0.0, high=1.0)\n--\n\n"
             "Draw n uniforms on [low, high), (n,) float32, as torch does.\n\n"
             "Raises ValueError unless low <= high and both and their difference are finite in float32.");

PyDoc_STRVAR(mt19937_normal_doc,
             "normal($self, /, n)\n--\n\n"
             "Draw n standard normals, (n,) float32, as torch does.\n\n"
             "A draw of n is not the beginning of a longer one. Fewer than 16 are made in pairs, in double precision;\n"
             "the second of a pair that was not asked for waits for the next such call.");

PyDoc_STRVAR(mt19937_bounded_doc,
             "bounded($self, /, max)\n--\n\n"
             "Draw an int on 0..max, both inclusive, as ``RandomState.randint(max + 1)`` does; max = 0 draws nothing.");

PyDoc_STRVAR(mt19937_permutation_doc,
             "permutation($self, /, n)\n--\n\n"
             "Draw a permutation of 0..n-1, (n,) int64, as ``RandomState.permutation(n)`` does.");

PyDoc_STRVAR(mt19937_choice_doc,
             "choice($self, /, n, size, replace)\n--\n\n"
             "Draw size elements of 0..n-1, (size,) int64, as ``RandomState.choice(n, size, replace)`` does.\n\n"
             "Raises ValueError if size is above n without replacement.");

#define METHOD(name)                                                                                                   \
    {#name, (PyCFunction)(void (*)(void))mt19937_##name, METH_FASTCALL | METH_KEYWORDS, mt19937_##name##_doc}

static PyMethodDef mt19937_methods[] = {
    STATE_METHODS,
    METHOD(uint32),
    METHOD(uniform),
    {"normal", (PyCFunction)(void (*)(void))source_normal, METH_FASTCALL | METH_KEYWORDS, mt19937_normal_doc},
    METHOD(bounded),
    METHOD(permutation),
    METHOD(choice),
    {NULL, NULL, 0, NULL},
};

static PyType_Slot philox_slots[] = {
    {Py_tp_doc, (void *)philox_doc},
    {Py_tp_new, philox_new},
    {Py_tp_dealloc, source_dealloc},
    {Py_tp_methods, philox_methods},
    {Py_tp_getset, philox_getset},
    {Py_tp_repr, source_repr},
    {0, NULL},
};

static PyType_Slot mt19937_slots[] = {
    {Py_tp_doc, (void *)mt19937_doc}, {Py_tp_new, mt19937_new},  {Py_tp_dealloc, source_dealloc},
    {Py_tp_methods, mt19937_methods}, {Py_tp_repr, source_repr}, {0, NULL},
};

int fwm_add_random_types(PyObject *module)
{
    PyType_Spec philox = {"fwm_py.random.Philox", sizeof(SourceObject), 0, FWM_TYPE_FLAGS, philox_slots};
    PyType_Spec mt19937 = {"fwm_py.random.MT19937", sizeof(SourceObject), 0, FWM_TYPE_FLAGS, mt19937_slots};
    return prepare() < 0 || fwm_add_type(module, &philox) < 0 ? -1 : fwm_add_type(module, &mt19937);
}

FwmBlockSource *fwm_block_source_of(PyObject *object)
{
    if (Py_TYPE(object)->tp_dealloc == source_dealloc)
        return source_of(object);
    PyErr_Format(PyExc_TypeError, "generator: got %.100s, expected a Philox or an MT19937", Py_TYPE(object)->tp_name);
    return NULL;
}
