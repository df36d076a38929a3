/* A pass of the model from end to end, in the order of the data: Omega, projections, sequences, and then the gradients
 * of the parameters, stored or taken directly by Adam.
 *
 * See docs/mathematics/retrieval.md. */
#include "kernels/retrieval/pass.h"

#include <string.h>

#include "kernels/retrieval/adam.h"
#include "kernels/retrieval/evaluation.h"
#include "kernels/retrieval/mapped.h"
#include "kernels/retrieval/omega.h"
#include "kernels/retrieval/projection.h"
#include "kernels/retrieval/softmax.h"
#include "kernels/retrieval/step.h"

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

size_t model_activations(const FwmModel *model)
{
    return largest(step_activations(model), evaluation_activations(model));
}

size_t model_scratch(const FwmModel *model)
{
    const size_t shared = largest(embedding_scratch(model), evaluation_scratch(model));
    if (!model->sizes.with_map)
        return largest(shared, softmax_scratch(model));
    return largest(shared, largest(mapped_scratch(model), omega_scratch(model->sizes.d)));
}

/* The phases up to the gradients of the projections; returns the mean loss of the batch, 0 without answers. */
static double run_phases(Step *s)
{
    if (s->map_shape.extension)
        prepare_omega(s);
    project(s);
    if (s->sizes->with_map)
        mapped_sequences(s);
    else
        softmax_sequences(s);
    double loss = 0;
    for (size_t b = 0; b < s->batch->n && s->batch->answer; b++)
        loss += s->losses[b];
    return loss / (double)s->batch->n;
}

static void parameter_gradients(Step *s)
{
    weight_gradients(s);
    embedding_gradients(s);
}

double model_loss(FwmModel *model, const FwmBatch *batch)
{
    Step s = step_begin(model, batch, LOSS_ONLY);
    return run_phases(&s);
}

double model_gradients(FwmModel *model, const FwmBatch *batch)
{
    Step s = step_begin(model, batch, GRADIENTS);
    const double loss = run_phases(&s);
    parameter_gradients(&s);
    return loss;
}

double model_step(FwmModel *model, const FwmBatch *batch, double lr)
{
    Step s = step_begin(model, batch, UPDATE);
    s.adam = adam_step(lr, ++model->steps);
    const double loss = run_phases(&s);
    parameter_gradients(&s);
    return loss;
}

void model_read_out(FwmModel *model, const FwmBatch *batch, void *y)
{
    Step s = step_begin(model, batch, LOSS_ONLY);
    run_phases(&s);
    const size_t N = s.sizes->n_keys;
    for (size_t b = 0; b < batch->n; b++)
        memcpy((real *)y + b * N, s.y + b * fwm_padded(N), N * sizeof(real));
}
