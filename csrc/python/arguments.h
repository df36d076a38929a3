/* Declared arguments: a row says what an argument of a function of _core is; shapes, dtypes, None, and the message
 * where it does not fit follow from the row. Rows are read once, at import (fwm_prepare).
 *
 * Shapes are written as "(B, T, H, K)". A letter is bound by the first array that has it, and holds for those behind
 * it; "..." stands for any number of axes, and "W - 1" for a size one below W. Arguments are read in the order of the
 * rows.
 *
 * Functions that return -1 or NULL have set an exception of the form "name: got .., expected ..". */
#ifndef FWM_PYTHON_ARGUMENTS_H
#define FWM_PYTHON_ARGUMENTS_H

#include <string.h>

#include "api/kernels.h"
#include "python/numpy_api.h"
#include "python/sequences.h"

enum { FWM_MOST_ARGUMENTS = 28, FWM_MOST_LETTERS = 12, FWM_MOST_AXES = 5, FWM_MOST_WORDS = 4 };

#define FWM_LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* Where a value goes in the struct of a call, for `at` and `gradient`; 0 is nowhere. */
#define FWM_AT(Call, member) (offsetof(Call, member) + 1)

/* What an argument is, and as what it goes into the struct of a call. */
typedef enum {
    FWM_ARRAY,  /* numbers, contiguous: const void * */
    FWM_TOKENS, /* numbers (B, T, ..): FwmTokens, which in a forward stay where they lie if a kernel can read them there
                 */
    FWM_INDICES,   /* integers from `from` (or low) below `below` (or any), less the first: const int32_t * */
    FWM_SEQUENCES, /* cu_seqlens of the letters B and T; binds the letter n */
    FWM_FLAG,      /* bool */
    FWM_NUMBER,    /* double, finite in the call's type */
    FWM_INTEGER,   /* size_t, in low..high */
    FWM_WORD,      /* unsigned: which of the words; where None is allowed it is 0, and the words count from 1 */
    FWM_ROW,       /* size_t: the row of a table, by name */
    FWM_OBJECT,    /* left to `then`, or to the function */
    FWM_STEP       /* no argument: `then` is called between those before and behind */
} FwmKind;

/* How the numbers of an array are stored: as the call computes, or in either precision, to be converted. */
typedef enum { FWM_AS_COMPUTED, FWM_FLOAT32_OR_FLOAT64 } FwmStored;

typedef enum { FWM_FORWARD = 1, FWM_BACKWARD = 2, FWM_BOTH = 3 } FwmDirection;

typedef struct FwmArguments FwmArguments;

/* A table whose rows are called by name (tables.c). */
typedef struct FwmTable FwmTable;

extern FwmTable fwm_maps, fwm_rules, fwm_readouts;

/* The row of a function's name or a short name; -1 with an exception that names `argument`. */
Py_ssize_t fwm_find(const FwmTable *table, PyObject *name, const char *argument);

typedef struct {
    const char *name;
    FwmKind kind;
    const char *shape;   /* of arrays; another one, of another rank, behind " or " */
    const char *swapped; /* of a state: its shape where the call says so (swapped below) */
    bool optional;       /* may be None, or left out */
    bool in_place;       /* of an array: is changed where it lies, which must be apart from all that is read */
    size_t at, gradient; /* of the value, and of the array that the backward writes */
    FwmDirection only;   /* 0: both */
    FwmStored stored;
    bool halves;                  /* of tokens: may be in 16 bits, if the first array is */
    const char *const *words;     /* NULL behind the last */
    long long low, high;          /* of an integer; low also of indices */
    const char *from, *below;     /* of indices: letters */
    bool or_equal;                /* of indices: they may be as large as what they are else below, as lengths are */
    double preset;                /* of a flag or a number that is left out */
    bool required;                /* of a flag or a number: has no preset */
    bool positive, not_negative;  /* of a number */
    const FwmTable *table;        /* of a row */
    const char *first, *expected; /* of a state that is a pair where the call says so: its first part, which is this
                                   * row, the second being the next one; and what is expected then */
    int (*then)(FwmArguments *);  /* once it is read: checks that no row can say */
} FwmArgument;

/* A letter: where its size goes, and what it may be; most 0: anything from `least` on. Letters of more than one letter,
 * which no shape needs to have: "rows", the product of the axes "..."; "n", the sequences: B, or as many as cu_seqlens
 * packs. */
typedef struct {
    const char *letter;
    size_t at;
    npy_intp least, most;
} FwmSize;

/* A shape, read. */
typedef struct {
    const char *text;
    bool leading;                 /* begins with "..." */
    int rank;                     /* without the leading axes */
    int letters[FWM_MOST_AXES];   /* rows of FwmSize */
    npy_intp less[FWM_MOST_AXES]; /* subtracted from their sizes */
} FwmShape;

/* A function's arguments, and the letters of their shapes. */
typedef struct {
    const char *name;
    const FwmArgument *arguments;
    size_t n_arguments, n_positional;
    const FwmSize *sizes;
    size_t n_sizes;
    int type; /* in which numbers are read where no array says it; 0: float64 */
    /* read from the rows */
    PyObject *names[FWM_MOST_ARGUMENTS], *words[FWM_MOST_ARGUMENTS][FWM_MOST_WORDS];
    FwmShape shapes[FWM_MOST_ARGUMENTS][2];                  /* text NULL: there is none */
    int from[FWM_MOST_ARGUMENTS], below[FWM_MOST_ARGUMENTS]; /* of indices: the rows of the letters, or -1 */
    uint32_t is_array, has_step;          /* bits of the arguments that are arrays, and that have `then` */
    uint32_t none_is_nothing, has_preset; /* bits of the arguments that may be None, or be left out */
    uint32_t of_other_direction[3];       /* and of those that a direction does not take, or that are second parts */
    uint32_t all;                         /* but second parts */
    bool has_in_place;                    /* some argument is changed */
    int rows, n, B, T;                    /* rows of these letters, or -1 */
} FwmSignature;

typedef union {
    bool flag;
    double number;
    long long integer;
    int word;
} FwmValue;

/* The arguments of a call. What stands before `like` is 0 before they are read, but for what the caller says; the rest
 * needs no value: calls of a few numbers spend their time on such things. */
struct FwmArguments {
    const FwmSignature *signature;
    FwmDirection direction;
    void *call;       /* the struct of the kernels, or NULL */
    uint32_t absent;  /* bits of the arguments that this call does not take; hooks add to them */
    bool paired;      /* states are pairs; set by hooks */
    bool swapped;     /* states have their other shape; set by hooks */
    int type;         /* NPY_FLOAT or NPY_DOUBLE, in which the call computes: that of the first array */
    FwmNumbers half;  /* that of the first array, which is then computed in float32; FWM_REAL where it is not 16 bits */
    const char *like; /* its name */
    const FwmKernels *kernels;
    npy_intp sizes[FWM_MOST_LETTERS]; /* -1: not bound yet */
    int leading_rank;                 /* of "..."; -1: not bound yet */
    npy_intp leading[NPY_MAXDIMS];
    uint32_t is_given; /* bits of what is given, and not None where None stands for nothing: fwm_has */
    PyObject *given[FWM_MOST_ARGUMENTS]; /* borrowed; NULL for nothing, of what this direction has */
    FwmValue values[FWM_MOST_ARGUMENTS];
    uint32_t held;                             /* bits of the arrays that there are; the others have no value */
    PyArrayObject *arrays[FWM_MOST_ARGUMENTS]; /* as the kernel reads them */
    PyArrayObject *came[FWM_MOST_ARGUMENTS]; /* where that is another one: as it came, for an out must not overlap it */
    FwmSequences sequences;
};

/* Reads the rows of a signature. */
int fwm_prepare(FwmSignature *signature);

/* The arguments are to be released after, whatever this returns. As a function of METH_FASTCALL | METH_KEYWORDS gets
 * them, and as tp_new does. */
int fwm_read_arguments(FwmArguments *a, const FwmSignature *signature, PyObject *const *args, Py_ssize_t n,
                       PyObject *names);
int fwm_read_new(FwmArguments *a, const FwmSignature *signature, PyObject *args, PyObject *kwargs);
void fwm_release_arguments(FwmArguments *a);

/* Whether an argument was given, and not None where None stands for nothing. */
static inline bool fwm_has(const FwmArguments *a, int argument)
{
    return a->is_given >> argument & 1;
}

/* The same of an argument whose row has not been read yet. */
static inline bool fwm_comes(const FwmArguments *a, int argument)
{
    return fwm_has(a, argument) && a->given[argument] != Py_None;
}

/* Before anything is said of the arguments. */
static inline void fwm_clear(FwmArguments *a)
{
    memset(a, 0, offsetof(FwmArguments, like));
}

/* What a function or a method does, with its arguments read. */
typedef PyObject *(*FwmFunction)(PyObject *self, FwmArguments *a);

/* Reads the arguments, calls, releases them. */
PyObject *fwm_call(PyObject *self, const FwmSignature *signature, FwmFunction function, PyObject *const *args,
                   Py_ssize_t n, PyObject *names);

/* A row of a type's methods: `function` by its signature. FWM_METHOD defines the C function in between. */
#define FWM_METHOD(name, signature, function)                                                                          \
    static PyObject *name(PyObject *self, PyObject *const *args, Py_ssize_t n, PyObject *names)                        \
    {                                                                                                                  \
        return fwm_call(self, signature, function, args, n, names);                                                    \
    }
#define FWM_METHOD_ROW(name, c_function, doc)                                                                          \
    {name, (PyCFunction)(void (*)(void))c_function, METH_FASTCALL | METH_KEYWORDS, doc}

/* Reads the rows of a signature and adds the function of its name to the module; self is not used. */
typedef struct {
    FwmSignature signature;
    FwmFunction call;
    PyMethodDef method; /* filled in here */
} FwmModuleFunction;

int fwm_add_function(PyObject *module, FwmModuleFunction *function);

/* Adds a function whose `self` holds this pointer: in bytes, since to open a capsule takes longer. */
int fwm_add_c_function(PyObject *module, PyMethodDef *method, void *pointer);
void *fwm_pointer_of(PyObject *self);

/* The axes of a shape, as far as they are bound (else -1); returns how many. */
int fwm_axes(const FwmArguments *a, const FwmShape *shape, npy_intp axes[NPY_MAXDIMS]);

/* Reads a shape; 0, or -1 if it has a letter that the signature has not. */
int fwm_parse_shape(const FwmSignature *signature, const char *text, FwmShape *shape);

/* Binds a letter, by the argument of this name, and checks its size. */
int fwm_bind(FwmArguments *a, int letter, npy_intp size, const char *name);

/* `given` must be a tuple of two. */
int fwm_check_pair(PyObject *given, const char *name, const char *expected);

/* An integer in low..high. */
int fwm_integer(PyObject *given, const char *name, long long low, long long high, long long *value);

#endif
