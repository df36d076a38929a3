/* The layout of a model's numbers (api/model.h), and its allocation. */
#include "retrieval/model.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/threads.h"

#define ALIGNMENT 64

static void *allocate(size_t bytes)
{
    const size_t rounded = (bytes / ALIGNMENT + 1) * ALIGNMENT;
    return rounded < bytes ? NULL : aligned_alloc(ALIGNMENT, rounded);
}

static void *allocate_zeros(size_t bytes)
{
    void *memory = allocate(bytes);
    if (memory)
        memset(memory, 0, bytes);
    return memory;
}

/* Appends `count` numbers to the layout; returns the offset where they start, on a cache line. */
static size_t place(size_t *next, size_t count)
{
    const size_t start = *next;
    *next += fwm_padded(count);
    return start;
}

static void add_parameter(FwmModel *model, FwmParameter parameter)
{
    model->parameters[model->n_parameters++] = parameter;
}

/* A linear layer that the model does not use: its parameters are drawn and published, but never read. */
static void add_unused(FwmModel *model, const char *weight, const char *bias, size_t rows, size_t columns)
{
    const size_t at = place(&model->n_numbers, rows * columns);
    add_parameter(model, (FwmParameter){weight, rows, columns, at, columns, 1, false});
    add_parameter(model, (FwmParameter){bias, rows, 0, place(&model->n_numbers, rows), 1, 0, false});
}

static void lay_out(FwmModel *model)
{
    const FwmModelSizes *z = &model->sizes;
    const size_t N = z->n_keys, E = z->embedding, d = z->d;
    size_t *next = &model->n_numbers;
    model->query_weight = place(next, E * z->ld);
    model->key_bias = place(next, z->ld);
    model->query_bias = place(next, z->ld);
    model->beta_bias = place(next, 1);
    model->beta_weight = place(next, N + E + FWM_PAD); /* padded with zeros, like a row of the embedding */
    model->key_weight = place(next, (N + E) * z->ld);
    model->embedding = place(next, 2 * N * z->ld_e);
    model->n_trained = model->embedding + N * z->ld_e;

    add_parameter(model, (FwmParameter){"embeddingV.weight", N, N, place(next, N * N), N, 1, false});
    add_parameter(model, (FwmParameter){"embeddingK.weight", 2 * N, E, model->embedding, z->ld_e, 1, true});
    add_parameter(model, (FwmParameter){"W_k.weight", d, N + E, model->key_weight, 1, z->ld, true});
    add_parameter(model, (FwmParameter){"W_k.bias", d, 0, model->key_bias, 1, 0, true});
    add_unused(model, "W_v.weight", "W_v.bias", d, N + E);
    add_parameter(model, (FwmParameter){"W_q.weight", d, E, model->query_weight, 1, z->ld, true});
    add_parameter(model, (FwmParameter){"W_q.bias", d, 0, model->query_bias, 1, 0, true});
    if (!z->with_map)
        return;
    add_unused(model, "W_f.weight", "W_f.bias", d, N + E);
    add_parameter(model, (FwmParameter){"W_b.weight", 1, N + E, model->beta_weight, N + E, 1, z->with_beta});
    add_parameter(model, (FwmParameter){"W_b.bias", 1, 0, model->beta_bias, 1, 0, z->with_beta});
}

int fwm_model_init(FwmModel *model, const FwmKernels *kernels, const FwmModelSizes *sizes)
{
    memset(model, 0, sizeof *model);
    model->kernels = kernels;
    model->sizes = *sizes;
    FwmModelSizes *z = &model->sizes;
    z->embedding = (size_t)(2 * (double)z->n_keys * 1.1);
    z->ld = fwm_padded(z->d);
    z->ld_e = fwm_padded(z->embedding);
    lay_out(model);
    const size_t trained = model->n_trained * kernels->real_size;
    model->numbers = allocate_zeros(model->n_numbers * kernels->real_size);
    model->gradients = allocate_zeros(trained);
    model->moment1 = allocate_zeros(trained);
    model->moment2 = allocate_zeros(trained);
    model->activations = allocate(kernels->model.activations(model));
    const bool whole = model->numbers && model->gradients && model->moment1 && model->moment2 && model->activations;
    return whole ? fwm_model_reserve(model) : -1;
}

void fwm_model_free(FwmModel *model)
{
    free(model->numbers);
    free(model->gradients);
    free(model->moment1);
    free(model->moment2);
    free(model->activations);
    free(model->scratch);
    memset(model, 0, sizeof *model);
}

int fwm_model_reserve(FwmModel *model)
{
    const int threads = fwm_num_threads();
    if (threads > model->scratch_threads) {
        const size_t stride = (model->kernels->model.scratch(model) / ALIGNMENT + 1) * ALIGNMENT;
        free(model->scratch);
        model->scratch_threads = 0;
        model->scratch = stride <= SIZE_MAX / (size_t)threads ? allocate(stride * (size_t)threads) : NULL;
        if (!model->scratch)
            return -1;
        model->scratch_stride = stride;
        model->scratch_threads = threads;
    }
    model->threads = threads;
    return 0;
}
