/* Philox and MT19937: extension types around the generators of csrc/random; and draw_omega, which draws from them. A
 * draw that fails for want of memory leaves its generator as it was. */
#include <math.h>

#include "api/dispatch.h"
#include "python/bindings.h"
#include "python/objects.h"
#include "random/numpy_legacy.h"
#include "runtime/scratch.h"

#define HIGHEST_POPULATION 2147483647LL /* permutations are held as int32 */
#define HIGHEST_WORD 4294967295LL
#define HIGHEST_LENGTH (PY_SSIZE_T_MAX / (Py_ssize_t)sizeof(int64_t))

typedef struct {
    FwmClaimed base;
    FwmBlockSource source;
    uint32_t seed;
} SourceObject; /* Philox or MT19937, by source.kind */

static FwmBlockSource *source_of(PyObject *self)
{
    return &((SourceObject *)self)->source;
}

static PyArrayObject *new_vector(long long length, int type)
{
    const npy_intp shape = (npy_intp)length;
    return (PyArrayObject *)PyArray_SimpleNew(1, &shape, type);
}

/* ---- draws ---- */

#define INTEGER(name, least, most) {name, FWM_INTEGER, .low = least, .high = most}

static PyObject *draw_normal(PyObject *self, FwmArguments *a)
{
    const long long n = a->values[0].integer;
    PyArrayObject *out = new_vector(n, NPY_FLOAT32);
    if (out)
        fwm_next_normal_block(source_of(self), (size_t)n, PyArray_DATA(out));
    return (PyObject *)out;
}

FWM_CLAIMED_METHOD(philox, normal, draw_normal, INTEGER("n", 0, HIGHEST_WORD))
FWM_CLAIMED_METHOD(mt19937, normal, draw_normal, INTEGER("n", 0, HIGHEST_LENGTH))

static PyObject *draw_uint32(PyObject *self, FwmArguments *a)
{
    const long long n = a->values[0].integer;
    PyArrayObject *out = new_vector(n, NPY_UINT32);
    FwmMT19937 *bits = &source_of(self)->torch_cpu.bits;
    uint32_t *words = out ? PyArray_DATA(out) : NULL;
    for (long long i = 0; words && i < n; i++)
        words[i] = fwm_mt19937_next(bits);
    return (PyObject *)out;
}

FWM_CLAIMED_METHOD(mt19937, uint32, draw_uint32, INTEGER("n", 0, HIGHEST_LENGTH))

static PyObject *draw_uniform(PyObject *self, FwmArguments *a)
{
    const long long n = a->values[0].integer;
    const float low = (float)a->values[1].number, high = (float)a->values[2].number;
    if (low > high || !isfinite(high - low))
        return PyErr_Format(PyExc_ValueError, "low: got %s, expected %s",
                            low > high ? "a number above high" : "a number too far from high",
                            low > high ? "one that is not" : "a finite difference in float32");
    PyArrayObject *out = new_vector(n, NPY_FLOAT32);
    if (out)
        fwm_torch_uniform(&source_of(self)->torch_cpu, (size_t)n, low, high, PyArray_DATA(out));
    return (PyObject *)out;
}

FWM_CLAIMED_METHOD(mt19937, uniform, draw_uniform, INTEGER("n", 0, HIGHEST_LENGTH), {"low", FWM_NUMBER, .preset = 0},
                   {"high", FWM_NUMBER, .preset = 1})

static PyObject *draw_bounded(PyObject *self, FwmArguments *a)
{
    return PyLong_FromUnsignedLong(fwm_numpy_bounded(&source_of(self)->torch_cpu.bits, (uint32_t)a->values[0].integer));
}

FWM_CLAIMED_METHOD(mt19937, bounded, draw_bounded, INTEGER("max", 0, HIGHEST_WORD))

/* choice(n, size, replace) as int64; a permutation is the choice of all n without replacement. */
static PyObject *choose(PyObject *self, long long n, long long size, bool replace)
{
    const long long n_scratch = !replace && size < n ? n : 0;
    PyArrayObject *out = new_vector(size, NPY_INT64);
    int32_t *drawn = out ? PyMem_Malloc((size_t)(size + n_scratch) * sizeof *drawn) : NULL;
    if (!drawn) {
        Py_XDECREF(out);
        return PyErr_NoMemory();
    }
    fwm_numpy_choice(&source_of(self)->torch_cpu.bits, (uint32_t)n, (size_t)size, replace, drawn, drawn + size);
    int64_t *wide = PyArray_DATA(out);
    for (long long i = 0; i < size; i++)
        wide[i] = drawn[i];
    PyMem_Free(drawn);
    return (PyObject *)out;
}

static PyObject *draw_permutation(PyObject *self, FwmArguments *a)
{
    return choose(self, a->values[0].integer, a->values[0].integer, false);
}

FWM_CLAIMED_METHOD(mt19937, permutation, draw_permutation, INTEGER("n", 0, HIGHEST_POPULATION))

static PyObject *draw_choice(PyObject *self, FwmArguments *a)
{
    const long long n = a->values[0].integer, size = a->values[1].integer;
    const bool replace = a->values[2].flag;
    if (replace || size <= n)
        return choose(self, n, size, replace);
    return PyErr_Format(PyExc_ValueError, "size: got %lld, expected at most the %lld of n, without replacement", size,
                        n);
}

FWM_CLAIMED_METHOD(mt19937, choice, draw_choice, INTEGER("n", 1, HIGHEST_POPULATION),
                   INTEGER("size", 0, HIGHEST_LENGTH), {"replace", FWM_FLAG, .required = true})

/* ---- life, and copies: how to make it anew, and its state ---- */

static const FwmArgument seed_rows[] = {INTEGER("seed", 0, HIGHEST_WORD)};

static FwmSignature of_philox = {"Philox", seed_rows, 1, 1}, of_mt19937 = {"MT19937", seed_rows, 1, 1};

static PyObject *new_source(PyTypeObject *type, PyObject *args, PyObject *kwargs, const FwmSignature *signature,
                            FwmBlockSourceKind kind)
{
    FwmArguments a = {0};
    SourceObject *self = fwm_read_new(&a, signature, args, kwargs) < 0 ? NULL : (SourceObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->seed = (uint32_t)a.values[0].integer;
    self->source.kind = kind;
    if (kind == FWM_PHILOX)
        self->source.philox = (FwmPhilox){.seed = self->seed, .next_block = 0};
    else
        fwm_torch_seed(&self->source.torch_cpu, self->seed);
    return (PyObject *)self;
}

static PyObject *philox_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    return new_source(type, args, kwargs, &of_philox, FWM_PHILOX);
}

static PyObject *mt19937_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    return new_source(type, args, kwargs, &of_mt19937, FWM_TORCH_CPU);
}

static PyObject *reduce(PyObject *self, FwmArguments *Py_UNUSED(a))
{
    return Py_BuildValue("O(k)N", (PyObject *)Py_TYPE(self), (unsigned long)((SourceObject *)self)->seed,
                         fwm_source_state(source_of(self)));
}

FWM_CLAIMED_METHOD(source, __reduce__, reduce)

static PyObject *set_state(PyObject *self, FwmArguments *a)
{
    return fwm_set_source_state(source_of(self), a->given[0]) < 0 ? NULL : Py_NewRef(Py_None);
}

FWM_CLAIMED_METHOD(source, __setstate__, set_state, {"state", FWM_OBJECT})

static PyObject *source_repr(PyObject *self)
{
    const FwmPhilox *philox = &source_of(self)->philox;
    if (source_of(self)->kind == FWM_TORCH_CPU)
        return PyUnicode_FromFormat("<MT19937 of seed %lu>", (unsigned long)((SourceObject *)self)->seed);
    return PyUnicode_FromFormat("<Philox of seed %llu, %lu blocks drawn>", (unsigned long long)philox->seed,
                                (unsigned long)philox->next_block);
}

PyDoc_STRVAR(
    philox_doc,
    "Philox(seed)\n--\n\nBlocks of standard normals as torch draws them on CUDA.\n\n"
    "Philox4x32-10 and a Box-Muller transform in float32; the published FAVOR+ runs took their features from\n"
    "it. The blocks of a seed never change.\n\n"
    "Parameters\n----------\nseed : int\n    0..2**32 - 1.\n\n"
    "Raises\n------\nTypeError, ValueError\n    If the seed is no such integer.\n\n"
    "Notes\n-----\n"
    "Element i of block j depends on (seed, j, i) alone. After ``torch.cuda.manual_seed(seed)`` the calls of\n"
    "``torch.randn(64, 64, device=\"cuda\")`` give these blocks, but for the last bits of CUDA's logarithm and\n"
    "sine. Source: Salmon, Moraes, Dror, Shaw, \"Parallel random numbers: as easy as 1, 2, 3\" (2011).");

PyDoc_STRVAR(
    mt19937_doc,
    "MT19937(seed)\n--\n\nThe Mersenne Twister, with the draws that torch's CPU generator and NumPy's RandomState make "
    "of it.\n\n"
    "One stream of 32-bit words serves all methods, in the order of the calls. The draws of a seed never change.\n\n"
    "Parameters\n----------\nseed : int\n    0..2**32 - 1.\n\n"
    "Raises\n------\nTypeError, ValueError\n    If the seed is no such integer.\n\n"
    "Notes\n-----\n"
    "``uniform`` and ``normal`` equal ``torch.empty(n).uniform_(low, high)`` and ``torch.randn(n)`` to the bit,\n"
    "after ``torch.manual_seed(seed)`` on a CPU with AVX2. ``bounded``, ``permutation`` and ``choice`` equal\n"
    "those of ``numpy.random.RandomState(seed)``. Source: Matsumoto, Nishimura, \"Mersenne Twister\" (1998).");

static PyMethodDef philox_methods[] = {
    FWM_CLAIMED_ROW(source, __reduce__, NULL),
    FWM_CLAIMED_ROW(source, __setstate__, NULL),
    FWM_CLAIMED_ROW(philox, normal,
                    "normal($self, /, n)\n--\n\nDraw the next block: n standard normals, (n,) float32, n < 2**32."),
    {NULL, NULL, 0, NULL},
};

static PyMethodDef mt19937_methods[] = {
    FWM_CLAIMED_ROW(source, __reduce__, NULL),
    FWM_CLAIMED_ROW(source, __setstate__, NULL),
    FWM_CLAIMED_ROW(mt19937, uint32, "uint32($self, /, n)\n--\n\nDraw n words, (n,) uint32."),
    FWM_CLAIMED_ROW(mt19937, uniform,
                    "uniform($self, /, n, low=0.0, high=1.0)\n--\n\n"
                    "Draw n uniforms on [low, high), (n,) float32, as torch does.\n\n"
                    "Raises ValueError unless low <= high and both and their difference are finite in float32."),
    FWM_CLAIMED_ROW(
        mt19937, normal,
        "normal($self, /, n)\n--\n\nDraw n standard normals, (n,) float32, as torch does.\n\n"
        "A draw of n is not the beginning of a longer one. Fewer than 16 are made in pairs, in double precision;\n"
        "the second of a pair that was not asked for waits for the next such call."),
    FWM_CLAIMED_ROW(
        mt19937, bounded,
        "bounded($self, /, max)\n--\n\n"
        "Draw an int on 0..max, both inclusive, as ``RandomState.randint(max + 1)`` does; max = 0 draws nothing."),
    FWM_CLAIMED_ROW(mt19937, permutation,
                    "permutation($self, /, n)\n--\n\n"
                    "Draw a permutation of 0..n-1, (n,) int64, as ``RandomState.permutation(n)`` does."),
    FWM_CLAIMED_ROW(mt19937, choice,
                    "choice($self, /, n, size, replace)\n--\n\n"
                    "Draw size elements of 0..n-1, (size,) int64, as ``RandomState.choice(n, size, replace)`` does.\n\n"
                    "Raises ValueError if size is above n without replacement."),
    {NULL, NULL, 0, NULL},
};

static PyMemberDef members[] = {
    {"seed", T_ULONGLONG, offsetof(SourceObject, source.philox.seed), READONLY, "The seed (int)."},
    {"blocks_drawn", T_UINT, offsetof(SourceObject, source.philox.next_block), READONLY,
     "The number of blocks drawn since seeding (int)."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot philox_slots[] = {{Py_tp_doc, (void *)philox_doc},
                                     {Py_tp_new, philox_new},
                                     {Py_tp_dealloc, fwm_free_object},
                                     {Py_tp_methods, philox_methods},
                                     {Py_tp_members, members},
                                     {Py_tp_repr, source_repr},
                                     {0, NULL}};

static PyType_Slot mt19937_slots[] = {
    {Py_tp_doc, (void *)mt19937_doc}, {Py_tp_new, mt19937_new},  {Py_tp_dealloc, fwm_free_object},
    {Py_tp_methods, mt19937_methods}, {Py_tp_repr, source_repr}, {0, NULL},
};

/* ---- draw_omega ---- */

enum { D, M, GENERATOR };

static const FwmArgument omega_rows[] = {
    [D] = INTEGER("d", 1, 8192),
    [M] = INTEGER("m", 1, 1 << 20),
    [GENERATOR] = {"generator", FWM_OBJECT},
};

/* omega (d x m), float32: ceil(m / d) blocks of d x d normals from the generator, made orthogonal. */
static PyObject *draw_omega(PyObject *Py_UNUSED(self), FwmArguments *a)
{
    PyObject *generator = a->given[GENERATOR];
    if (Py_TYPE(generator)->tp_dealloc != fwm_free_object)
        return PyErr_Format(PyExc_TypeError, "generator: got %.100s, expected a Philox or an MT19937",
                            Py_TYPE(generator)->tp_name);
    if (fwm_claim(generator) < 0)
        return NULL;
    const FwmKernels *kernels = fwm_kernels_f32();
    const size_t d = (size_t)a->values[D].integer, m = (size_t)a->values[M].integer, blocks = fwm_tiles(m, d);
    const npy_intp shape[] = {(npy_intp)d, (npy_intp)m};
    PyObject *omega = PyArray_SimpleNew(2, shape, NPY_FLOAT);
    float *normals = omega ? fwm_scratch(blocks * d * d * sizeof(float)) : NULL;
    void *scratch = normals ? fwm_scratch(kernels->make_omega_scratch(d)) : NULL;
    if (scratch) {
        Py_BEGIN_ALLOW_THREADS
        for (size_t i = 0; i < blocks; i++)
            fwm_next_normal_block(source_of(generator), d * d, normals + i * d * d);
        kernels->make_omega(d, m, normals, PyArray_DATA((PyArrayObject *)omega), scratch);
        Py_END_ALLOW_THREADS
    } else if (omega) {
        Py_CLEAR(omega);
        PyErr_NoMemory();
    }
    fwm_release_scratch(normals);
    fwm_release_scratch(scratch);
    fwm_release(generator);
    return omega;
}

static FwmModuleFunction omega = {
    .signature = {"draw_omega", omega_rows, FWM_LENGTH(omega_rows), FWM_LENGTH(omega_rows)}, .call = draw_omega};

int fwm_add_random(PyObject *module)
{
    FwmSignature *const signatures[] = {
        &of_philox,         &of_mt19937,        &of_source___reduce__, &of_source___setstate__, &of_philox_normal,
        &of_mt19937_normal, &of_mt19937_uint32, &of_mt19937_uniform,   &of_mt19937_bounded,     &of_mt19937_permutation,
        &of_mt19937_choice};
    const size_t size = sizeof(SourceObject), n = FWM_LENGTH(signatures);
    if (fwm_add_type(module, "fwm_py.random.Philox", size, philox_slots, signatures, n) < 0 ||
        fwm_add_type(module, "fwm_py.random.MT19937", size, mt19937_slots, NULL, 0) < 0)
        return -1;
    return fwm_add_function(module, &omega);
}
