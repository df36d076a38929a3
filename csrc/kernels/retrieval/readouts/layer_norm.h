/* The layer norm of a read-out, without an affine part, over the N values:
 *
 *     y = (x - mean) / deviation,   deviation = sqrt(variance + eps), biased variance, eps = 1e-5
 *
 * Backward: saved y and 1 / deviation.
 *
 *     dx = (dy - mean(dy) - y mean(dy y)) / deviation
 *
 * In double, because the variance falls below eps after some training.
 *
 * Derived in docs/mathematics/readout_fwm.md. */
#ifndef FWM_KERNELS_RETRIEVAL_READOUTS_LAYER_NORM_H
#define FWM_KERNELS_RETRIEVAL_READOUTS_LAYER_NORM_H

#include <math.h>

#include "kernels/base/real.h"

/* x and y have a number every `stride`, and may be the same array. Returns 1 / deviation. */
static inline double layer_norm_forward(size_t n_values, const real *x, real *y, size_t stride)
{
    double mean = 0, variance = 0;
    for (size_t n = 0; n < n_values; n++)
        mean += x[n * stride];
    mean /= (double)n_values;
    for (size_t n = 0; n < n_values; n++)
        variance += (x[n * stride] - mean) * (x[n * stride] - mean);
    const double reciprocal = 1 / sqrt(variance / (double)n_values + 1e-5);
    for (size_t n = 0; n < n_values; n++)
        y[n * stride] = (real)((x[n * stride] - mean) * reciprocal);
    return reciprocal;
}

/* What dx of every value needs. */
typedef struct {
    double mean_dy, mean_dy_y, reciprocal;
} LayerNormBackward;

static inline LayerNormBackward layer_norm_backward(size_t n_values, const real *y, const real *dy, double reciprocal)
{
    LayerNormBackward b = {.reciprocal = reciprocal};
    for (size_t n = 0; n < n_values; n++) {
        b.mean_dy += dy[n] / (double)n_values;
        b.mean_dy_y += (double)dy[n] * y[n] / (double)n_values;
    }
    return b;
}

/* dx of one value */
static inline double layer_norm_dx(const LayerNormBackward *b, real y, real dy)
{
    return (dy - b->mean_dy - y * b->mean_dy_y) * b->reciprocal;
}

#endif
