/* What a pass shares: parameters, gradients, and the arrays between the phases.
 *
 * See docs/mathematics/retrieval.md. */
#include "kernels/retrieval/step.h"

static void take_activations(Step *s, size_t B, Arena *arena)
{
    const FwmModelSizes *z = s->sizes;
    const size_t N = z->n_keys, ld_b = fwm_padded(B), ld_n = fwm_padded(N);
    s->dqueries = take(arena, B * s->table_ld);
    s->queries = take(arena, B * s->table_ld);
    s->query_rows = take(arena, B * z->ld_e);
    s->dquery_rows = take(arena, B * z->ld_e);
    s->query_weight_t = take(arena, z->ld * z->ld_e);
    s->y = take(arena, B * ld_n);
    s->losses = take_bytes(arena, B * sizeof(double));
    if (z->with_map) {
        const size_t table = N * s->table_ld;
        s->by_key = take(arena, table);
        s->by_value = s->map_shape.extension ? take(arena, table) : s->key_weight;
        s->omega = take(arena, z->d * fwm_padded(s->map_shape.extension));
        s->omega_t = take(arena, s->map_shape.extension * fwm_padded(z->d));
        s->key_weight_t = take(arena, z->ld * z->ld_e);
        s->block_tables = take(arena, fwm_min(B, SEQUENCE_BLOCKS) * 2 * table);
        s->touched = take_bytes(arena, s->leaves_out ? fwm_min(B, SEQUENCE_BLOCKS) * 2 * N * sizeof(bool) : 0);
        s->live = take_bytes(arena, fwm_tiles(N, TILE_KEYS) * sizeof(bool));
        s->largest_u = take(arena, s->leaves_out ? 2 * N : 0);
        s->logit_by_key = take(arena, ld_n);
        s->block_logits = take(arena, fwm_min(B, SEQUENCE_BLOCKS) * 2 * ld_n);
        s->beta_weight_before = take(arena, z->ld_e);
    } else {
        s->queries_t = take(arena, z->d * ld_b);
        s->folded_t = take(arena, (N + z->embedding) * ld_b);
        s->folded = take(arena, B * z->ld_e);
        s->key_scores = take(arena, N * ld_b);
        s->dkey_scores = take(arena, B * ld_n);
        s->dvalue_scores = take(arena, B * ld_n);
        s->dfolded = take(arena, B * z->ld_e);
    }
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
    Step s = {.model = model, .sizes = z, .readout = readouts[z->readout], .table_ld = z->ld};
    if (z->with_map) {
        s.map = feature_maps[z->map];
        s.map_shape = map_shape(s.map, z->d, z->argument);
        s.map_shape.flushes = s.readout->flushes_subnormals;
        s.leaves_out = s.map->vanishes && s.readout->ignores_zeros;
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
    Arena arena = arena_at(model->activations);
    take_activations(&s, model->sizes.batch, &arena);
    return s;
}

size_t step_activations(const FwmModel *model)
{
    Step s = step_of_model((FwmModel *)model);
    Arena arena = {0};
    take_activations(&s, model->sizes.batch, &arena);
    return arena.next;
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
