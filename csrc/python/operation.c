#include "python/operation.h"

#include <string.h>

#include "python/arrays.h"
#include "runtime/scratch.h"
#include "runtime/threads.h"

enum { NAME = 24, LEAST_WITHOUT_GIL = 5000 };

/* A call on its way: what it reads, and what it writes. */
typedef struct {
    FwmArguments a;
    const FwmBinding *binding;
    PyArrayObject *outputs[FWM_MOST_OUTPUTS];     /* of a forward */
    PyArrayObject *gradients[FWM_MOST_ARGUMENTS]; /* of a backward, by argument */
    union {
        FwmMapCall map;
        FwmRuleCall rule;
        FwmNoncausalCall noncausal;
        FwmReadoutCall readout;
        FwmAttentionCall attention;
        FwmConvolutionCall convolution;
        FwmConvolutionUpdateCall update;
        FwmNormCall norm;
    } call;
} FwmCall;

static int run_pass(const FwmOperation *operation, const FwmPass *pass, const void *call, bool keep_gil)
{
    const int threads = fwm_num_threads();
    void *scratch = pass->scratch ? fwm_scratch(pass->scratch(call, threads)) : NULL;
    if (pass->scratch && !scratch) {
        PyErr_NoMemory();
        return -1;
    }
    PyThreadState *state = keep_gil ? NULL : PyEval_SaveThread();
    const bool flushed = fwm_loops_flush(operation->flushes_subnormals);
    pass->run(call, threads, scratch);
    fwm_loops_flush(flushed);
    if (state)
        PyEval_RestoreThread(state);
    fwm_release_scratch(scratch);
    return 0;
}

static void set_pointer(FwmCall *c, size_t at, PyArrayObject *array)
{
    *(void **)((char *)&c->call + at - 1) = PyArray_DATA(array);
}

/* ---- arrays to write ---- */

/* Apart from all that is read, of which only `itself` it may be, if it is all of it, and from the n arrays to write. */
static int check_apart(const FwmCall *c, PyArrayObject *out, const char *name, int itself,
                       PyArrayObject *const *written, size_t n)
{
    const FwmArguments *a = &c->a;
    const FwmBounds bounds = fwm_bounds(out);
    for (uint32_t held = a->held; held; held &= held - 1) {
        const int i = __builtin_ctz(held);
        PyArrayObject *came = a->came[i] ? a->came[i] : a->arrays[i];
        const bool is_it = i == itself && PyArray_DATA(out) == PyArray_DATA(a->arrays[i]);
        if (!is_it && fwm_check_apart(out, bounds, name, came, a->signature->arguments[i].name) < 0)
            return -1;
    }
    for (size_t k = 0; k < n; k++)
        if (written[k] && fwm_check_apart(out, bounds, name, written[k], "out") < 0)
            return -1;
    return 0;
}

/* Arguments that are changed in place: apart from all others. */
static int check_in_place(const FwmCall *c)
{
    for (uint32_t held = c->a.held; held; held &= held - 1) {
        const int i = __builtin_ctz(held);
        const FwmArgument *row = &c->a.signature->arguments[i];
        if (row->in_place && check_apart(c, c->a.arrays[i], row->name, i, NULL, 0) < 0)
            return -1;
    }
    return 0;
}

/* A new array, of the dtype of `like` (NULL: of the type in which the call computes). */
static PyArrayObject *new_array(const FwmCall *c, PyArrayObject *like, int rank, const npy_intp *axes)
{
    PyArray_Descr *type = like ? (PyArray_Descr *)Py_NewRef(PyArray_DESCR(like)) : PyArray_DescrFromType(c->a.type);
    return (PyArrayObject *)PyArray_NewFromDescr(&PyArray_Type, type, rank, axes, NULL, NULL, 0, NULL);
}

/* The axes of an output; returns how many. */
static int axes_of(const FwmCall *c, size_t i, npy_intp axes[NPY_MAXDIMS])
{
    return fwm_axes(&c->a, &c->binding->output_shapes[i][c->binding->outputs[i].swapped && c->a.swapped], axes);
}

static int give_output(FwmCall *c, size_t i, PyObject *given, const char *name)
{
    const FwmOutput *output = &c->binding->outputs[i];
    npy_intp axes[NPY_MAXDIMS];
    const int rank = axes_of(c, i, axes);
    const char *shape = output->swapped && c->a.swapped ? output->swapped : output->shape;
    const FwmNumbers half = output->half ? c->a.half : FWM_REAL;
    PyArrayObject *array = c->outputs[i] = fwm_output_array(given, name, c->a.type, half, c->a.like, shape, rank, axes);
    return array ? check_apart(c, array, name, c->binding->may_be[i], c->outputs, i) : -1;
}

/* out of a forward: an output, or a tuple of it and a state. */
static int give_outputs(FwmCall *c, PyObject *out)
{
    if (!c->binding->tuple || !PyTuple_Check(out))
        return give_output(c, 0, out, "out");
    if (fwm_check_pair(out, "out", c->binding->tuple) < 0 || give_output(c, 0, PyTuple_GET_ITEM(out, 0), "out[0]") < 0)
        return -1;
    PyObject *state = PyTuple_GET_ITEM(out, 1);
    if (!c->a.paired)
        return give_output(c, 1, state, "out[1]");
    if (fwm_check_pair(state, "out[1]", "a tuple (S, z) where normalize is True") < 0 ||
        give_output(c, 1, PyTuple_GET_ITEM(state, 0), "out[1][0]") < 0)
        return -1;
    return give_output(c, 2, PyTuple_GET_ITEM(state, 1), "out[1][1]");
}

static bool is_wanted(const FwmCall *c, size_t i)
{
    const FwmOutput *output = &c->binding->outputs[i];
    const int by = c->binding->asked_by[i];
    const bool is_flag = by >= 0 && c->a.signature->arguments[by].kind == FWM_FLAG;
    return (by < 0 || (is_flag ? c->a.values[by].flag : fwm_has(&c->a, by))) && (!output->second || c->a.paired);
}

/* The first array of a call in 16 bits, whose dtype output i has too; NULL for other outputs and calls. */
static PyArrayObject *first_half(const FwmCall *c, size_t i)
{
    const bool half = c->binding->outputs[i].half && c->a.half != FWM_REAL;
    return half ? c->a.arrays[__builtin_ctz(c->a.held)] : NULL;
}

static int make_outputs(FwmCall *c, PyObject *out)
{
    if (out && give_outputs(c, out) < 0)
        return -1;
    for (size_t i = 0; i < c->binding->n_outputs; i++) {
        npy_intp axes[NPY_MAXDIMS];
        if (!c->outputs[i] && is_wanted(c, i)) {
            const int rank = axes_of(c, i, axes);
            c->outputs[i] = new_array(c, first_half(c, i), rank, axes);
            if (!c->outputs[i])
                return -1;
        }
        if (c->outputs[i])
            set_pointer(c, c->binding->outputs[i].at, c->outputs[i]);
    }
    return 0;
}

/* ---- gradients ---- */

/* Whether the result has a place for the gradient of this argument; the second part of a state shares that of the
 * first. */
static bool has_place(const FwmCall *c, size_t i)
{
    return c->a.signature->arguments[i].gradient && !(c->a.absent >> i & 1);
}

static Py_ssize_t count_places(const FwmCall *c)
{
    Py_ssize_t n = 0;
    for (size_t i = 0; i < c->a.signature->n_arguments; i++)
        n += has_place(c, i);
    return n;
}

static int check_gradients(PyObject *out, Py_ssize_t n)
{
    if (PyTuple_Check(out) && PyTuple_GET_SIZE(out) == n)
        return 0;
    if (PyTuple_Check(out))
        PyErr_Format(PyExc_ValueError, "out: got a tuple of %zd, expected one of the %zd gradients",
                     PyTuple_GET_SIZE(out), n);
    else
        PyErr_Format(PyExc_TypeError, "out: got %.100s, expected a tuple of the %zd gradients", Py_TYPE(out)->tp_name,
                     n);
    return -1;
}

/* The gradient of argument i: `given`, apart from what is read and from the gradients before it, or new. */
static int make_gradient(FwmCall *c, size_t i, PyObject *given, const char *name)
{
    PyArrayObject *input = c->a.arrays[i], *array;
    const FwmNumbers half = fwm_numbers_of(input);
    const char *like = half == FWM_REAL ? c->a.like : c->a.signature->arguments[i].name;
    if (!given)
        array = new_array(c, half == FWM_REAL ? NULL : input, PyArray_NDIM(input), PyArray_DIMS(input));
    else
        array = fwm_output_array(given, name, c->a.type, half, like, "as its input", PyArray_NDIM(input),
                                 PyArray_DIMS(input));
    c->gradients[i] = array;
    if (!array || (given && check_apart(c, array, name, -1, c->gradients, i) < 0))
        return -1;
    set_pointer(c, c->a.signature->arguments[i].gradient, array);
    return 0;
}

/* One place of the result: a gradient, or those of a state that is a pair; `given` is what out has there, or NULL. */
static int fill_place(FwmCall *c, size_t i, PyObject *given, Py_ssize_t at)
{
    const FwmArgument *row = &c->a.signature->arguments[i];
    const bool is_pair = row->first && c->a.paired;
    char name[NAME], parts[2][NAME];
    if (!given)
        return make_gradient(c, i, NULL, "") < 0 || (is_pair && make_gradient(c, i + 1, NULL, "") < 0) ? -1 : 0;
    PyOS_snprintf(name, NAME, "out[%zd]", at);
    if (!is_pair)
        return make_gradient(c, i, given, name);
    PyOS_snprintf(parts[0], NAME, "out[%zd][0]", at);
    PyOS_snprintf(parts[1], NAME, "out[%zd][1]", at);
    if (fwm_check_pair(given, name, row->expected) < 0 || make_gradient(c, i, PyTuple_GET_ITEM(given, 0), parts[0]) < 0)
        return -1;
    return make_gradient(c, i + 1, PyTuple_GET_ITEM(given, 1), parts[1]);
}

static int make_gradients(FwmCall *c, PyObject *out)
{
    const FwmSignature *s = c->a.signature;
    Py_ssize_t at = 0;
    if (out && check_gradients(out, count_places(c)) < 0)
        return -1;
    for (size_t i = 0; i < s->n_arguments; i++) {
        if (!has_place(c, i))
            continue;
        PyObject *given = out ? PyTuple_GET_ITEM(out, at) : NULL;
        const bool has_input = c->a.held >> i & 1;
        if (!has_input && given && given != Py_None) {
            PyErr_Format(PyExc_ValueError, "out[%zd]: got %.100s, expected None, because there is no %s", at,
                         Py_TYPE(given)->tp_name, s->arguments[i].name);
            return -1;
        }
        if (has_input && fill_place(c, i, given, at) < 0)
            return -1;
        at++;
    }
    return 0;
}

/* ---- results ---- */

/* An array, a pair of it and its second part, or None. */
static PyObject *part(PyArrayObject *first, PyArrayObject *second)
{
    return second ? PyTuple_Pack(2, first, second) : Py_NewRef(first ? (PyObject *)first : Py_None);
}

static PyObject *forward_result(const FwmCall *c)
{
    const FwmBinding *b = c->binding;
    if (b->n_outputs == 1 || (b->outputs[1].never_given && !c->outputs[1]))
        return part(c->outputs[0], NULL);
    PyObject *state = part(c->outputs[1], c->outputs[2]);
    PyObject *others = state && c->outputs[3] ? part(c->outputs[3], c->outputs[4]) : NULL, *result = NULL;
    if (others)
        result = PyTuple_Pack(3, c->outputs[0], state, others);
    else if (state && !c->outputs[3])
        result = PyTuple_Pack(2, c->outputs[0], state);
    Py_XDECREF(state);
    Py_XDECREF(others);
    return result;
}

static PyObject *backward_result(const FwmCall *c)
{
    PyObject *result = PyTuple_New(count_places(c));
    Py_ssize_t at = 0;
    for (size_t i = 0; result && i < c->a.signature->n_arguments; i++) {
        if (!has_place(c, i))
            continue;
        const bool is_pair = c->a.signature->arguments[i].first && c->a.paired;
        PyObject *gradient = part(c->gradients[i], is_pair ? c->gradients[i + 1] : NULL);
        if (gradient)
            PyTuple_SET_ITEM(result, at++, gradient);
        else
            Py_CLEAR(result);
    }
    return result;
}

/* ---- the two functions ---- */

/* Whether a call is so small that to give the GIL away and to take it again costs more than what others could do
 * meanwhile: its work is about the product of its sizes. */
static bool is_small(const FwmArguments *a)
{
    npy_intp work = 1;
    for (size_t i = 0; i < a->signature->n_sizes && work < LEAST_WITHOUT_GIL; i++)
        work *= a->sizes[i] > 1 ? a->sizes[i] : 1;
    return work < LEAST_WITHOUT_GIL;
}

static int run(FwmCall *c)
{
    const FwmBinding *b = c->binding;
    const FwmOperation *operation = (const void *)((const char *)c->a.kernels + b->operation);
    const FwmPass *pass = c->a.direction == FWM_FORWARD ? &operation->forward : &operation->backward;
    if (!b->is_empty || !b->is_empty(&c->a))
        return run_pass(operation, pass, &c->call, is_small(&c->a));
    for (size_t i = 0; c->a.direction == FWM_BACKWARD && i < c->a.signature->n_arguments; i++)
        if (c->gradients[i])
            memset(PyArray_DATA(c->gradients[i]), 0, (size_t)PyArray_NBYTES(c->gradients[i]));
    return 0;
}

static int make_results(FwmCall *c)
{
    PyObject *out = c->a.given[c->a.signature->n_arguments - 1]; /* the last argument */
    return c->a.direction == FWM_FORWARD ? make_outputs(c, out) : make_gradients(c, out);
}

static void release(FwmCall *c)
{
    fwm_release_arguments(&c->a);
    for (size_t i = 0; i < FWM_MOST_OUTPUTS; i++)
        Py_XDECREF(c->outputs[i]);
    for (size_t i = 0; c->a.direction == FWM_BACKWARD && i < c->a.signature->n_arguments; i++)
        Py_XDECREF(c->gradients[i]);
}

/* Zeros where they are needed, which is not everywhere: a call of a few numbers takes a third of a microsecond. */
static void begin(FwmCall *c, const FwmBinding *binding, FwmDirection direction)
{
    fwm_clear(&c->a);
    c->a.direction = direction;
    c->a.call = &c->call;
    c->binding = binding;
    memset(&c->call, 0, binding->call_size);
    memset(c->outputs, 0, sizeof c->outputs);
    if (direction == FWM_BACKWARD)
        memset(c->gradients, 0, binding->signature.n_arguments * sizeof c->gradients[0]);
}

static PyObject *call(PyObject *self, FwmDirection direction, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    FwmCall c;
    PyObject *result = NULL;
    const FwmBinding *b = fwm_pointer_of(self);
    begin(&c, b, direction);
    if (fwm_read_arguments(&c.a, &b->signature, args, n, names) == 0 && (!b->finish || b->finish(&c.a) == 0) &&
        (!b->signature.has_in_place || check_in_place(&c) == 0) && make_results(&c) == 0 && run(&c) == 0)
        result = direction == FWM_FORWARD ? forward_result(&c) : backward_result(&c);
    release(&c);
    return result;
}

static PyObject *call_forward(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    return call(self, FWM_FORWARD, args, n, names);
}

static PyObject *call_backward(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    return call(self, FWM_BACKWARD, args, n, names);
}

static int argument_number(const FwmSignature *s, const char *name)
{
    for (size_t i = 0; name && i < s->n_arguments; i++)
        if (strcmp(s->arguments[i].name, name) == 0)
            return (int)i;
    return -1;
}

int fwm_add_operation(PyObject *module, FwmBinding *b)
{
    int status = fwm_prepare(&b->signature);
    for (size_t i = 0; status == 0 && i < b->n_outputs; i++) {
        status = fwm_parse_shape(&b->signature, b->outputs[i].shape, &b->output_shapes[i][0]);
        if (status == 0 && b->outputs[i].swapped)
            status = fwm_parse_shape(&b->signature, b->outputs[i].swapped, &b->output_shapes[i][1]);
        b->asked_by[i] = argument_number(&b->signature, b->outputs[i].asked_by);
        b->may_be[i] = argument_number(&b->signature, b->outputs[i].may_be);
    }
    PyOS_snprintf(b->names[0], sizeof b->names[0], "%s_forward", b->signature.name);
    PyOS_snprintf(b->names[1], sizeof b->names[1], "%s_backward", b->signature.name);
    b->methods[0] = (PyMethodDef)FWM_METHOD_ROW(b->names[0], call_forward, NULL);
    b->methods[1] = (PyMethodDef)FWM_METHOD_ROW(b->names[1], call_backward, NULL);
    for (int i = 0; status == 0 && i < 2 - b->forward_only; i++)
        status = fwm_add_c_function(module, &b->methods[i], b);
    return status;
}
