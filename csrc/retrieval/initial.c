/* The initial parameters, drawn as in the published program: layer by layer with PyTorch's defaults, then again where
 * the program sets its own distribution. What is drawn again is skipped the first time.
 *
 * FROZEN: the published losses depend on these numbers. */
#include "retrieval/initial.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const FwmParameter *find(const FwmModel *model, const char *name)
{
    for (size_t i = 0; i < model->n_parameters; i++)
        if (strcmp(model->parameters[i].name, name) == 0)
            return &model->parameters[i];
    return NULL;
}

static size_t columns_of(const FwmParameter *parameter)
{
    return parameter->columns ? parameter->columns : 1;
}

static size_t size_of(const FwmParameter *parameter)
{
    return parameter->rows * columns_of(parameter);
}

/* Copies values (rows x columns, row-major) to the parameter's places in model->numbers. */
static void store(FwmModel *model, const FwmParameter *p, const float *values)
{
    for (size_t i = 0; i < p->rows; i++)
        for (size_t j = 0; j < columns_of(p); j++) {
            const size_t at = p->offset + i * p->row_stride + j * p->column_stride;
            if (model->kernels->real_size == sizeof(float))
                ((float *)model->numbers)[at] = *values++;
            else
                ((double *)model->numbers)[at] = *values++;
        }
}

static void draw_uniform(FwmModel *model, FwmTorchCpu *generator, const char *name, double bound, float *buffer)
{
    const FwmParameter *parameter = find(model, name);
    fwm_torch_uniform(generator, size_of(parameter), (float)-bound, (float)bound, buffer);
    store(model, parameter, buffer);
}

/* A linear layer's default: uniform(+-1 / sqrt(fan_in)) for the weight and then the bias. */
static void draw_layer(FwmModel *model, FwmTorchCpu *generator, const char *weight, const char *bias, bool keep_weight,
                       float *buffer)
{
    const double bound = 1 / sqrt((double)find(model, weight)->columns);
    if (keep_weight)
        draw_uniform(model, generator, weight, bound, buffer);
    else
        fwm_torch_skip_uniform(generator, size_of(find(model, weight)));
    draw_uniform(model, generator, bias, bound, buffer);
}

static double xavier_bound(const FwmModel *model, const char *name)
{
    const FwmParameter *parameter = find(model, name);
    return sqrt(6 / (double)(parameter->rows + parameter->columns));
}

static void set_identity(FwmModel *model, const FwmParameter *parameter, float *buffer)
{
    memset(buffer, 0, size_of(parameter) * sizeof(float));
    for (size_t i = 0; i < parameter->rows; i++)
        buffer[i * parameter->columns + i] = 1;
    store(model, parameter, buffer);
}

int fwm_initial_parameters(FwmModel *model, FwmTorchCpu *generator)
{
    const FwmModelSizes *z = &model->sizes;
    size_t largest = 0;
    for (size_t i = 0; i < model->n_parameters; i++)
        if (size_of(&model->parameters[i]) > largest)
            largest = size_of(&model->parameters[i]);
    float *buffer = malloc(largest * sizeof(float));
    if (!buffer)
        return -1;
    const FwmParameter *embedding = find(model, "embeddingK.weight");

    fwm_torch_skip_normal(generator, z->n_keys * z->n_keys);
    fwm_torch_skip_normal(generator, size_of(embedding));
    set_identity(model, find(model, "embeddingV.weight"), buffer);
    draw_layer(model, generator, "W_k.weight", "W_k.bias", false, buffer);
    draw_layer(model, generator, "W_v.weight", "W_v.bias", false, buffer);
    draw_layer(model, generator, "W_q.weight", "W_q.bias", false, buffer);
    if (z->with_map) {
        draw_layer(model, generator, "W_f.weight", "W_f.bias", true, buffer);
        draw_layer(model, generator, "W_b.weight", "W_b.bias", true, buffer);
    }

    fwm_torch_normal(generator, size_of(embedding), buffer);
    store(model, embedding, buffer);
    const double attention_bound = 1 / sqrt((double)z->d);
    draw_uniform(model, generator, "W_v.weight", xavier_bound(model, "W_v.weight"), buffer);
    draw_uniform(model, generator, "W_k.weight", z->with_map ? attention_bound : xavier_bound(model, "W_k.weight"),
                 buffer);
    draw_uniform(model, generator, "W_q.weight", z->with_map ? attention_bound : xavier_bound(model, "W_q.weight"),
                 buffer);
    free(buffer);
    return 0;
}
