/* The heads of queries, keys and values, which operations with a state share. */
#include "python/bindings.h"

/* A state, or a token of all heads, of more numbers is beyond all memory; products of sizes stay far from overflow. */
#define MOST_NUMBERS ((size_t)1 << 40)

int fwm_check_heads(FwmArguments *a, size_t HQ, size_t H, size_t HV, size_t K, size_t V, int outputs)
{
    if (HV % H) {
        PyErr_Format(PyExc_ValueError, "v: got %zu heads, expected a multiple of the %zu of k", HV, H);
        return -1;
    }
    if (HQ != H && HQ % HV) {
        PyErr_Format(PyExc_ValueError, "q: got %zu heads, expected the %zu of k, or a multiple of the %zu of v", HQ, H,
                     HV);
        return -1;
    }
    const size_t heads = HQ > HV ? HQ : HV;
    if (K > MOST_NUMBERS / V || heads > MOST_NUMBERS / K || heads > MOST_NUMBERS / V) {
        PyErr_NoMemory();
        return -1;
    }
    return fwm_bind(a, outputs, (npy_intp)heads, "o");
}
