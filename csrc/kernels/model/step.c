/* A pass of the model from end to end, in the order of the data: Omega, projections, attention, and back through the
 * projections into gradients or straight into Adam. */
#include "kernels/model/step.h"

#include <string.h>

#include "kernels/base/workspace.h"
#include "kernels/model/model_entry.h"

/* Gives the step its memory, which starts at address `next`; returns where it ends. */
static uintptr_t place(Step *s, size_t B, uintptr_t next)
{
    const FwmModelSizes *z = s->sizes;
    const size_t r = sizeof(real), N = z->n_keys, ld_b = fwm_padded(B), ld_n = fwm_padded(N);
    s->dqueries = take(&next, B * s->table_ld * r);
    s->queries = take(&next, B * s->table_ld * r); /* not first: a map may read some numbers before its rows */
    s->query_rows = take(&next, B * z->ld_e * r);
    s->dquery_rows = take(&next, B * z->ld_e * r);
    s->query_weight_t = take(&next, z->ld * z->ld_e * r);
    s->y = take(&next, B * ld_n * r);
    s->losses = take(&next, B * sizeof(double));
    if (z->with_map) {
        const size_t table = N * s->table_ld * r;
        s->by_key = take(&next, table);
        s->by_value = s->map_shape.extension ? take(&next, table) : s->key_weight;
        s->omega = take(&next, z->d * fwm_padded(s->map_shape.extension) * r);
        s->omega_t = take(&next, s->map_shape.extension * fwm_padded(z->d) * r);
        s->key_weight_t = take(&next, z->ld * z->ld_e * r);
        s->block_tables = take(&next, fwm_min(B, SEQUENCE_BLOCKS) * 2 * table);
        s->logit_by_key = take(&next, ld_n * r);
        s->block_logits = take(&next, fwm_min(B, SEQUENCE_BLOCKS) * 2 * ld_n * r);
        s->beta_weight_before = take(&next, z->ld_e * r);
    } else {
        s->queries_t = take(&next, z->d * ld_b * r);
        s->folded_t = take(&next, (N + z->embedding) * ld_b * r);
        s->folded = take(&next, B * z->ld_e * r);
        s->key_scores = take(&next, N * ld_b * r);
        s->dkey_scores = take(&next, B * ld_n * r);
        s->dvalue_scores = take(&next, B * ld_n * r);
        s->dfolded = take(&next, B * z->ld_e * r);
    }
    return next;
}

static void find_parameters(Step *s)
{
    const FwmModel *model = s->model;
    real *p = model->numbers, *g = model->gradients;
    s->key_bias = p + model->key_bias, s->dkey_bias = g + model->key_bias;
    s->query_bias = p + model->query_bias, s->dquery_bias = g + model->query_bias;
    s->beta_bias = p + model->beta_bias, s->dbeta_bias = g + model->beta_bias;
    s->beta_weight = p + model->beta_weight, s->dbeta_weight = g + model->beta_weight;
    s->query_weight = p + model->query_weight, s->dquery_weight = g + model->query_weight;
    s->key_weight = p + model->key_weight, s->dkey_weight = g + model->key_weight;
    s->embedding = p + model->embedding, s->dembedding = g + model->embedding;
}

Step step_of_model(FwmModel *model)
{
    const FwmModelSizes *z = &model->sizes;
    Step s = {.model = model, .sizes = z, .rule = readouts[z->rule], .table_ld = z->ld};
    if (z->with_map) {
        s.map = feature_maps[z->map];
        s.map_shape = map_shape(s.map, z->d, z->argument);
        s.table_ld = s.map_shape.ld;
    }
    find_parameters(&s);
    return s;
}

Step step_begin(FwmModel *model, const FwmBatch *batch, Purpose purpose)
{
    Step s = step_of_model(model);
    s.batch = batch;
    s.purpose = purpose;
    place(&s, model->sizes.batch, (uintptr_t)model->activations);
    return s;
}

size_t step_activations(const FwmModel *model)
{
    Step s = step_of_model((FwmModel *)model);
    return place(&s, model->sizes.batch, 0);
}

double loss_of_sequence(const Step *s, size_t b, real *dy)
{
    const size_t N = s->sizes->n_keys, answer = (size_t)s->batch->answer[b];
    const real *y = s->y + b * fwm_padded(N);
    double loss = 0;
    for (size_t n = 0; n < N; n++) {
        const real difference = y[n] - (n == answer);
        loss += (double)difference * difference;
        dy[n] = difference / (real)s->batch->n;
    }
    return loss / 2;
}

static size_t largest(size_t a, size_t b)
{
    return a > b ? a : b;
}

size_t model_scratch(const FwmModel *model)
{
    size_t numbers = largest(embedding_scratch(model), evaluation_scratch(model));
    if (model->sizes.with_map)
        numbers = largest(numbers, largest(linear_attention_scratch(model), omega_scratch(model->sizes.d)));
    else
        numbers = largest(numbers, softmax_attention_scratch(model));
    return numbers * sizeof(real);
}

/* The pass; returns the mean loss of the batch, 0 without answers. */
static double run(Step *s)
{
    if (s->map_shape.extension)
        place_omega(s);
    project(s);
    if (s->sizes->with_map)
        linear_attention(s);
    else
        softmax_attention(s);
    double loss = 0;
    for (size_t b = 0; b < s->batch->n && s->batch->answer; b++)
        loss += s->losses[b];
    return loss / (double)s->batch->n;
}

static void backward(Step *s)
{
    weight_gradients(s);
    embedding_gradients(s);
}

double model_loss(FwmModel *model, const FwmBatch *batch)
{
    Step s = step_begin(model, batch, LOSS_ONLY);
    return run(&s);
}

double model_gradients(FwmModel *model, const FwmBatch *batch)
{
    Step s = step_begin(model, batch, GRADIENTS);
    const double loss = run(&s);
    backward(&s);
    return loss;
}

double model_step(FwmModel *model, const FwmBatch *batch, double lr)
{
    Step s = step_begin(model, batch, UPDATE);
    s.adam = adam_step(lr, ++model->steps);
    const double loss = run(&s);
    backward(&s);
    return loss;
}

void model_read_out(FwmModel *model, const FwmBatch *batch, void *y)
{
    Step s = step_begin(model, batch, LOSS_ONLY);
    run(&s);
    const size_t N = s.sizes->n_keys;
    for (size_t b = 0; b < batch->n; b++)
        memcpy((real *)y + b * N, s.y + b * fwm_padded(N), N * sizeof(real));
}
