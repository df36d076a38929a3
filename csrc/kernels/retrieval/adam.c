/* Adam (Kingma and Ba, 2015), beta = (0.9, 0.999), eps = 1e-8, for the t-th step:
 *
 *     m = 0.9 m + 0.1 g,   v = 0.999 v + 0.001 g^2
 *     p -= lr / (1 - 0.9^t) * m / (sqrt(v) / sqrt(1 - 0.999^t) + eps)
 *
 * Dense: a number whose gradient is 0 is updated too, because its m need not be 0.
 *
 * Derived in docs/mathematics/retrieval.md. */
#include "kernels/retrieval/adam.h"

#include <math.h>

#include "kernels/base/vmath.h"

#define BETA1 0.9
#define BETA2 0.999
#define EPS 1e-8
#define TASK_NUMBERS 4096

AdamStep adam_step(double lr, uint64_t t)
{
    return (AdamStep){
        .lr_over_bias1 = (real)(lr / (1 - pow(BETA1, (double)t))),
        .inverse_root_bias2 = (real)(1 / sqrt(1 - pow(BETA2, (double)t))),
    };
}

void adam_update(const AdamStep *a, size_t n, const real *restrict g, real *restrict p, real *restrict m,
                 real *restrict v)
{
    const real rate = a->lr_over_bias1, scale = a->inverse_root_bias2;
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        const real m_i = (real)BETA1 * m[i] + (real)(1 - BETA1) * g[i];
        const real v_i = (real)BETA2 * v[i] + (real)(1 - BETA2) * g[i] * g[i];
        m[i] = m_i;
        v[i] = v_i;
        p[i] -= rate * (m_i / (FWM_SQRT(v_i) * scale + (real)EPS));
    }
}

void adam_update_range(const Step *s, size_t start, size_t n)
{
    const FwmModel *model = s->model;
    adam_update(&s->adam, n, (real *)model->gradients + start, (real *)model->numbers + start,
                (real *)model->moment1 + start, (real *)model->moment2 + start);
}

/* The numbers from key_bias, over beta's parameters, to the last value row of key_weight (api/model.h). */
static size_t biases_and_value_rows(const Step *s)
{
    return s->model->key_weight + s->sizes->n_keys * s->sizes->ld - s->model->key_bias;
}

size_t adam_tasks(const Step *s)
{
    return fwm_tiles(biases_and_value_rows(s), TASK_NUMBERS);
}

void adam_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Step *s = context;
    const size_t start = index * TASK_NUMBERS;
    adam_update_range(s, s->model->key_bias + start, fwm_min(TASK_NUMBERS, biases_and_value_rows(s) - start));
}
