/* From scores to the base of 2 (KEYS x ROWS, a row a lane) to weights: softmax before its division. */
#ifndef FWM_KERNELS_ATTENTION_WEIGHTS_H
#define FWM_KERNELS_ATTENTION_WEIGHTS_H

#include <float.h>

#include "kernels/attention/exp2.h"

/* The reference of a row whose scores are all -inf: finite, because -inf - -inf would be NaN. */
#define LOWEST (FWM_REAL_IS_DOUBLE ? (real) - DBL_MAX : (real) - FLT_MAX)

/* The largest score of each of the vector's lanes, ignoring NaN. */
static inline vec largest_scores(size_t keys, size_t ld, const real *scores)
{
    const vec lowest = (vec){0} + LOWEST;
    vec largest[4] = {lowest, lowest, lowest, lowest};
    size_t j = 0;
    for (; j + 4 <= keys; j += 4)
        for (size_t c = 0; c < 4; c++)
            largest[c] = vec_max(vec_load(scores + (j + c) * ld), largest[c]);
    for (; j < keys; j++)
        largest[0] = vec_max(vec_load(scores + j * ld), largest[0]);
    return vec_max(vec_max(largest[0], largest[1]), vec_max(largest[2], largest[3]));
}

/* The scores of the vector's lanes become 2^(score - reference); returns their sums. */
static inline vec weigh(size_t keys, size_t ld, vec reference, real *scores)
{
    vec total = {0};
    for (size_t j = 0; j < keys; j++) {
        const vec weight = vec_exp2(vec_load(scores + j * ld) - reference);
        vec_store(scores + j * ld, weight);
        total += weight;
    }
    return total;
}

#endif
