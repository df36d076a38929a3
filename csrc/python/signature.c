/* Rows of arguments, read once, and the functions and methods that they are of. */
#include "python/arguments.h"

#include <string.h>

/* ---- rows, read once ---- */

static int letter_number(const FwmSignature *s, const char *letter, size_t length)
{
    for (size_t i = 0; i < s->n_sizes; i++)
        if (strlen(s->sizes[i].letter) == length && strncmp(s->sizes[i].letter, letter, length) == 0)
            return (int)i;
    return -1;
}

/* "(B, W - 1, D)", "(..., D)", "(D,)", up to the closing bracket. */
int fwm_parse_shape(const FwmSignature *s, const char *text, FwmShape *shape)
{
    *shape = (FwmShape){.text = text};
    for (const char *at = text + 1; *at && *at != ')';) {
        const size_t length = strcspn(at, " ,)");
        if (strncmp(at, "...", 3) == 0) {
            shape->leading = true;
        } else if (length > 0) {
            if (shape->rank == FWM_MOST_AXES || (shape->letters[shape->rank] = letter_number(s, at, length)) < 0)
                return -1;
            shape->less[shape->rank++] = strncmp(at + length, " - 1", 4) == 0;
        }
        at += length + strcspn(at + length, ",)");
        at += strspn(at, ", ");
    }
    return 0;
}

static int parse_shapes(FwmSignature *s, size_t i)
{
    const char *text = s->arguments[i].shape, *other = text ? strstr(text, " or ") : NULL;
    if (!text)
        return 0;
    const char *second = other ? other + strlen(" or ") : s->arguments[i].swapped;
    if (fwm_parse_shape(s, text, &s->shapes[i][0]) < 0 || (second && fwm_parse_shape(s, second, &s->shapes[i][1]) < 0))
        return -1;
    return 0;
}

static void set_bit(uint32_t *bits, size_t i, bool value)
{
    *bits |= (uint32_t)value << i;
}

static void prepare_bits(FwmSignature *s, size_t i)
{
    const FwmArgument *row = &s->arguments[i];
    const bool is_option = row->kind == FWM_FLAG || row->kind == FWM_NUMBER, is_second = i > 0 && row[-1].first;
    set_bit(&s->all, i, !is_second);
    s->has_in_place |= row->in_place;
    set_bit(&s->is_array, i, row->kind <= FWM_INDICES);
    set_bit(&s->has_step, i, row->then != NULL);
    set_bit(&s->none_is_nothing, i, row->optional || row->kind == FWM_SEQUENCES);
    set_bit(&s->has_preset, i, row->optional || row->kind == FWM_SEQUENCES || row->kind == FWM_STEP);
    set_bit(&s->has_preset, i, is_option && !row->required);
    set_bit(&s->of_other_direction[FWM_FORWARD - 1], i, is_second || row->only == FWM_BACKWARD);
    set_bit(&s->of_other_direction[FWM_BACKWARD - 1], i, is_second || row->only == FWM_FORWARD);
}

int fwm_prepare(FwmSignature *s)
{
    s->rows = letter_number(s, "rows", 4);
    s->n = letter_number(s, "n", 1);
    s->B = letter_number(s, "B", 1);
    s->T = letter_number(s, "T", 1);
    for (size_t i = 0; i < s->n_arguments; i++) {
        const FwmArgument *row = &s->arguments[i];
        s->from[i] = row->from ? letter_number(s, row->from, strlen(row->from)) : -1;
        s->below[i] = row->below ? letter_number(s, row->below, strlen(row->below)) : -1;
        if (!s->names[i])
            s->names[i] = PyUnicode_InternFromString(row->name);
        if (!s->names[i])
            return -1;
        prepare_bits(s, i);
        for (int k = 0; row->words && row->words[k] && k < FWM_MOST_WORDS; k++)
            if (!(s->words[i][k] = PyUnicode_InternFromString(row->words[k])))
                return -1;
        if (s->n_arguments > FWM_MOST_ARGUMENTS || s->n_sizes > FWM_MOST_LETTERS || parse_shapes(s, i) < 0) {
            PyErr_Format(PyExc_SystemError, "%s: the row of %s cannot be read", s->name, row->name);
            return -1;
        }
    }
    return 0;
}

/* ---- functions and methods ---- */

PyObject *fwm_call(PyObject *self, const FwmSignature *signature, FwmFunction function, PyObject *const *args,
                   Py_ssize_t n, PyObject *names)
{
    FwmArguments a;
    fwm_clear(&a);
    PyObject *result = fwm_read_arguments(&a, signature, args, n, names) < 0 ? NULL : function(self, &a);
    fwm_release_arguments(&a);
    return result;
}

static PyObject *call_module_function(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names)
{
    const FwmModuleFunction *function = fwm_pointer_of(self);
    return fwm_call(NULL, &function->signature, function->call, args, n, names);
}

void *fwm_pointer_of(PyObject *self)
{
    void *pointer;
    memcpy(&pointer, PyBytes_AS_STRING(self), sizeof pointer);
    return pointer;
}

int fwm_add_c_function(PyObject *module, PyMethodDef *method, void *pointer)
{
    PyObject *self = PyBytes_FromStringAndSize((const char *)&pointer, sizeof pointer);
    PyObject *function = self ? PyCFunction_New(method, self) : NULL;
    const int status = function ? PyModule_AddObjectRef(module, method->ml_name, function) : -1;
    Py_XDECREF(function);
    Py_XDECREF(self);
    return status;
}

int fwm_add_function(PyObject *module, FwmModuleFunction *f)
{
    f->method = (PyMethodDef)FWM_METHOD_ROW(f->signature.name, call_module_function, NULL);
    return fwm_prepare(&f->signature) < 0 ? -1 : fwm_add_c_function(module, &f->method, f);
}
