#include "python/tokens.h"

/* Bytes of a token's numbers, if these lie side by side; else -1. */
static npy_intp bytes_of_token(PyArrayObject *x)
{
    npy_intp bytes = PyArray_ITEMSIZE(x);
    for (int i = PyArray_NDIM(x) - 1; i >= 2; i--) {
        if (PyArray_DIM(x, i) > 1 && PyArray_STRIDE(x, i) != bytes)
            return -1;
        bytes *= PyArray_DIM(x, i);
    }
    return bytes;
}

/* Bytes from a token to the next, which may be another sequence's. */
static npy_intp bytes_between_tokens(PyArrayObject *x)
{
    const bool one = PyArray_DIM(x, 0) <= 1 && PyArray_DIM(x, 1) <= 1;
    return one ? bytes_of_token(x) : PyArray_STRIDE(x, PyArray_DIM(x, 1) > 1);
}

bool fwm_can_stay(PyArrayObject *x, int type)
{
    const int got = PyArray_TYPE(x);
    const bool fits = type ? got == type : got == NPY_FLOAT || got == NPY_DOUBLE;
    if (!fits || !PyArray_CheckExact(x) || PyArray_NDIM(x) < 3 || !PyArray_ISALIGNED(x) || !PyArray_ISNOTSWAPPED(x) ||
        PyArray_SIZE(x) == 0)
        return false;
    const npy_intp bytes = bytes_of_token(x), between = bytes_between_tokens(x), B = PyArray_DIM(x, 0),
                   T = PyArray_DIM(x, 1);
    return bytes > 0 && between >= bytes && between % PyArray_ITEMSIZE(x) == 0 &&
           (B <= 1 || PyArray_STRIDE(x, 0) == T * between);
}

FwmTokens fwm_tokens_of(PyArrayObject *x)
{
    return (FwmTokens){PyArray_DATA(x), (size_t)(bytes_between_tokens(x) / PyArray_ITEMSIZE(x))};
}
