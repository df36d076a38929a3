/* Two evaluations of sequences that have many queries each. As published: chunks of B queries, a chunk's mean loss is a
 * float32, and the evaluation's loss is the mean over all chunks, whatever their sizes. Recall: all queries alike.
 *
 * All keys are projected once, as keys and as queries. A sequence is then one task: its queries are answered together,
 * except with FAVOR+ as published, where every chunk is a forward pass with its own Omega. An Omega is found by its
 * position in the stream, so that sequences need not wait for each other.
 *
 * Derived in docs/mathematics/retrieval.md. */
#include "kernels/retrieval/evaluation.h"

#include <math.h>
#include <string.h>

#include "kernels/base/transpose.h"
#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"
#include "kernels/maps/omega.h"
#include "kernels/retrieval/omega.h"
#include "kernels/retrieval/readouts/softmax.h"
#include "runtime/threads.h"

#define MAX_SEQUENCES 64

typedef struct {
    Step step; /* by_key: the projected keys, x alone */
    const FwmEvaluation *evaluation;
    real *queries;    /* N x table_ld: every key, projected as a query */
    real *keys_t;     /* softmax: d x padded(N) */
    real *values_t;   /* softmax: d x padded(N) */
    real *key_scores; /* softmax: N x padded(N), a row a query */
    real *value_scores;
    bool recalls;
    FwmRecall recalled[MAX_SEQUENCES]; /* sums over the queries of a sequence, and its worst */
    /* as published */
    float *chunk_losses; /* of all sequences, one after the other */
    size_t first_chunk[MAX_SEQUENCES + 1];
} Evaluation;

/* The most queries of a sequence: its distinct keys. (The experiment asks at most 200.) */
static size_t max_queries_of(const FwmModelSizes *z)
{
    return z->n_keys;
}

static void take_shared(Evaluation *e, Arena *arena)
{
    const FwmModelSizes *z = e->step.sizes;
    const size_t N = z->n_keys, ld_n = fwm_padded(N), table = N * e->step.table_ld;
    e->step.by_key = take(arena, table);
    e->step.logit_by_key = take(arena, N);
    e->queries = take(arena, table);
    if (!z->with_map) {
        e->keys_t = take(arena, z->d * ld_n);
        e->values_t = take(arena, z->d * ld_n);
        e->key_scores = take(arena, N * ld_n);
        e->value_scores = take(arena, N * ld_n);
    }
    e->chunk_losses = take_bytes(arena, MAX_SEQUENCES * fwm_tiles(max_queries_of(z), z->batch) * sizeof(float));
}

size_t evaluation_activations(const FwmModel *model)
{
    Evaluation e = {.step = step_of_model((FwmModel *)model)};
    Arena arena = {0};
    take_shared(&e, &arena);
    return arena.next;
}

/* For one sequence through a feature map and a read-out. */
typedef struct {
    real *phi;                            /* L x ld_features */
    real *pre;                            /* L x ld */
    real *beta;                           /* L */
    real *query_pre;                      /* n_queries x ld */
    real *query_phi;                      /* n_queries x ld_features */
    real *columns;                        /* ld_features x ld_queries */
    real *y;                              /* N x ld_queries */
    real *omega;                          /* d x padded(m) */
    void *of_omega, *of_map, *of_readout; /* their scratch */
} EvaluationScratch;

/* n: the number of queries. */
static EvaluationScratch take_scratch(const Step *s, size_t n, Arena *arena)
{
    const size_t L = s->sizes->length, N = s->sizes->n_keys, d = s->sizes->d, ld_queries = fwm_padded(n);
    const MapShape *shape = &s->map_shape;
    EvaluationScratch w;
    w.phi = take(arena, L * shape->ld_features);
    w.pre = take(arena, L * shape->ld);
    w.beta = take(arena, L);
    w.query_pre = take(arena, n * shape->ld);
    w.query_phi = take(arena, n * shape->ld_features);
    w.columns = take(arena, shape->ld_features * ld_queries);
    w.y = take(arena, N * ld_queries);
    w.omega = take(arena, d * fwm_padded(shape->extension));
    w.of_omega = take_bytes(arena, shape->extension ? omega_scratch(d) : 0);
    w.of_map = take_bytes(arena, s->map->scratch ? s->map->scratch(shape) : 0);
    w.of_readout = take_bytes(arena, s->readout->scratch(L, N, shape->ld_features, ld_queries));
    return w;
}

/* For one query of a sequence by softmax attention. */
typedef struct {
    real *scores; /* L */
    real *y;      /* N */
} SoftmaxQueryScratch;

static SoftmaxQueryScratch take_query_scratch(const Step *s, Arena *arena)
{
    SoftmaxQueryScratch w;
    w.scores = take(arena, s->sizes->length);
    w.y = take(arena, s->sizes->n_keys);
    return w;
}

size_t evaluation_scratch(const FwmModel *model)
{
    const Step s = step_of_model((FwmModel *)model);
    Arena arena = {0};
    if (s.map)
        take_scratch(&s, max_queries_of(s.sizes), &arena);
    else
        take_query_scratch(&s, &arena);
    return arena.next;
}

/* For each chunk of `batch` columns of y (N x ld), the mean of 0.5 |one-hot(answer) - y|^2. Overwrites y. */
static void chunk_losses(size_t n_values, size_t n, size_t batch, const int32_t *answers, real *y, size_t ld,
                         float *losses)
{
    for (size_t c = 0; c < n; c++)
        y[(size_t)answers[c] * ld + c] -= 1;
    for (size_t c0 = 0; c0 < n; c0 += batch) {
        const size_t c1 = fwm_min(n, c0 + batch);
        double loss = 0;
        for (size_t v = 0; v < n_values; v++) {
            const real *row = y + v * ld;
#pragma omp simd reduction(+ : loss)
            for (size_t c = c0; c < c1; c++)
                loss += (double)row[c] * row[c];
        }
        *losses++ = (float)(loss / 2 / (double)(c1 - c0));
    }
}

/* loss + |one-hot(answer) - y|^2 of one query. Overwrites y. */
static double add_loss(double loss, size_t n_values, size_t answer, real *y)
{
    y[answer] -= 1;
    for (size_t v = 0; v < n_values; v++)
        loss += (double)y[v] * y[v];
    return loss;
}

/* Adds up what the columns of y (N x ld) recall of `answers`. Overwrites y. */
static void recall_of_columns(size_t n_values, size_t n, const int32_t *answers, real *y, size_t ld, FwmRecall *recall)
{
    for (size_t c0 = 0; c0 < n; c0 += FWM_LANES) {
        const size_t count = fwm_min(FWM_LANES, n - c0);
        real wanted[FWM_LANES], others[FWM_LANES];
        double loss[FWM_LANES] = {0};
        for (size_t c = 0; c < count; c++) {
            real *answer = &y[(size_t)answers[c0 + c] * ld + c0 + c];
            wanted[c] = *answer;
            others[c] = -(real)INFINITY;
            const real difference = *answer - 1;
            loss[c] = (double)difference * difference;
            *answer = 0; /* adds nothing below */
        }
        for (size_t v = 0; v < n_values; v++) {
            const real *row = y + v * ld + c0;
            for (size_t c = 0; c < count; c++) {
                loss[c] += (double)row[c] * row[c];
                if (row[c] > others[c] && v != (size_t)answers[c0 + c])
                    others[c] = row[c];
            }
        }
        for (size_t c = 0; c < count; c++) {
            recall->loss += loss[c] / 2;
            recall->right += wanted[c] > others[c];
            recall->worst = isnan(loss[c]) || loss[c] / 2 > recall->worst ? loss[c] / 2 : recall->worst;
        }
    }
}

/* y (N x ld_queries): what the memory of sequence i answers to its queries q0 .. q0 + n - 1, in the columns. */
static void answer_queries(Evaluation *e, const EvaluationScratch *w, size_t i, size_t q0, size_t n, const real *beta)
{
    const Step *s = &e->step;
    const MapShape *shape = &s->map_shape;
    const size_t length = e->evaluation->length, N = s->sizes->n_keys, ld_queries = fwm_padded(n);
    const int32_t *queries = e->evaluation->queries + i * e->evaluation->max_queries + q0;
    for (size_t c = 0; c < n; c++)
        memcpy(w->query_pre + c * shape->ld, e->queries + (size_t)queries[c] * s->table_ld, shape->ld * sizeof(real));
    if (shape->extension) {
        omega_forward(shape, w->omega, length, w->pre);
        omega_forward(shape, w->omega, n, w->query_pre);
    }
    s->map->forward(shape, length, w->pre, w->phi, w->of_map);
    s->map->forward(shape, n, w->query_pre, w->query_phi, w->of_map);
    memset(w->columns, 0, shape->ld_features * ld_queries * sizeof(real));
    transpose(n, shape->ld_features, w->query_phi, shape->ld_features, w->columns, ld_queries);
    const ReadoutSequence sequence = {.length = length,
                                      .n_values = N,
                                      .features = shape->features,
                                      .ld = shape->ld_features,
                                      .keys = w->phi,
                                      .values = e->evaluation->values + i * length,
                                      .beta = beta};
    s->readout->answer(&sequence, w->of_readout, w->columns, ld_queries, w->y);
    const int32_t *answers = e->evaluation->answers + i * e->evaluation->max_queries + q0;
    if (e->recalls)
        recall_of_columns(N, n, answers, w->y, ld_queries, &e->recalled[i]);
    else
        chunk_losses(N, n, s->sizes->batch, answers, w->y, ld_queries,
                     e->chunk_losses + e->first_chunk[i] + q0 / s->sizes->batch);
}

/* Answers all queries of sequence i, `chunk` at a time, each chunk with its own Omega. */
static void answer_in_chunks(Evaluation *e, const EvaluationScratch *w, size_t i, size_t chunk, const real *beta)
{
    const Step *s = &e->step;
    const size_t n_queries = e->evaluation->n_queries[i], d = s->sizes->d, m = s->map_shape.extension;
    const size_t first = e->recalls ? i : e->first_chunk[i];
    memset(w->omega, 0, d * fwm_padded(m) * sizeof(real));
    for (size_t q = 0; q < n_queries; q += chunk) {
        FwmBlockSource source = source_of_pass(s->model, first + q / chunk);
        draw_omega(&source, d, m, w->omega, w->of_omega);
        answer_queries(e, w, i, q, fwm_min(chunk, n_queries - q), beta);
    }
}

static void mapped_task(void *context, size_t i, int thread)
{
    Evaluation *e = context;
    const Step *s = &e->step;
    const FwmModelSizes *z = s->sizes;
    const MapShape *shape = &s->map_shape;
    const size_t length = e->evaluation->length, n_queries = e->evaluation->n_queries[i];
    Arena arena = thread_scratch(s, thread);
    const EvaluationScratch w = take_scratch(s, n_queries, &arena);
    const int32_t *keys = e->evaluation->keys + i * length, *values = e->evaluation->values + i * length;
    for (size_t t = 0; t < length; t++) {
        real *row = w.pre + t * shape->ld;
        memcpy(row, s->by_key + (size_t)keys[t] * s->table_ld, shape->ld * sizeof(real));
        add(z->ld, s->key_weight + (size_t)values[t] * z->ld, row);
    }
    for (size_t t = 0; t < length && z->with_beta; t++)
        w.beta[t] = logistic(s->logit_by_key[keys[t]] + s->beta_weight[values[t]]);
    const real *beta = z->with_beta ? w.beta : NULL;
    if (shape->extension == 0)
        answer_queries(e, &w, i, 0, n_queries, beta);
    else
        answer_in_chunks(e, &w, i, e->recalls ? n_queries : z->batch, beta);
}

/* y (N): softmax attention's answer to a query of sequence i. */
static void answer_by_softmax(const Evaluation *e, const SoftmaxQueryScratch *w, size_t i, size_t query)
{
    const Step *s = &e->step;
    const size_t length = e->evaluation->length, N = s->sizes->n_keys, ld_n = fwm_padded(N);
    const int32_t *keys = e->evaluation->keys + i * length, *values = e->evaluation->values + i * length;
    const real *by_key = e->key_scores + query * ld_n, *by_value = e->value_scores + query * ld_n;
    const real scale = (real)(1 / sqrt((double)s->sizes->d));
    for (size_t t = 0; t < length; t++)
        w->scores[t] = scale * (by_key[keys[t]] + by_value[values[t]]);
    softmax_forward(length, N, values, w->scores, w->y);
}

static void softmax_task(void *context, size_t i, int thread)
{
    Evaluation *e = context;
    const Step *s = &e->step;
    const size_t N = s->sizes->n_keys, n_queries = e->evaluation->n_queries[i];
    const size_t chunk = e->recalls ? n_queries : s->sizes->batch;
    const int32_t *queries = e->evaluation->queries + i * e->evaluation->max_queries,
                  *answers = e->evaluation->answers + i * e->evaluation->max_queries;
    Arena arena = thread_scratch(s, thread);
    const SoftmaxQueryScratch w = take_query_scratch(s, &arena);
    for (size_t q0 = 0; q0 < n_queries; q0 += chunk) {
        const size_t q1 = fwm_min(q0 + chunk, n_queries);
        double loss = 0;
        for (size_t q = q0; q < q1; q++) {
            answer_by_softmax(e, &w, i, (size_t)queries[q]);
            if (e->recalls)
                recall_of_columns(N, 1, answers + q, w.y, 1, &e->recalled[i]);
            else
                loss = add_loss(loss, N, (size_t)answers[q], w.y);
        }
        if (!e->recalls)
            e->chunk_losses[e->first_chunk[i] + q0 / chunk] = (float)(loss / 2 / (double)(q1 - q0));
    }
}

/* A tile of keys, projected as keys and as queries. */
static void project_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Evaluation *e = context;
    const Step *s = &e->step;
    const FwmModelSizes *z = s->sizes;
    const size_t n0 = index * TILE_KEYS, count = fwm_min(TILE_KEYS, z->n_keys - n0), ld = s->table_ld;
    const Strided rows = rows_of(s->embedding + n0 * z->ld_e, z->ld_e);
    real *keys = s->by_key + n0 * ld, *queries = e->queries + n0 * ld;
    memset(keys, 0, count * ld * sizeof(real));
    memset(queries, 0, count * ld * sizeof(real));
    for (size_t n = 0; n < count; n++) {
        memcpy(keys + n * ld, s->key_bias, z->ld * sizeof(real));
        memcpy(queries + n * ld, s->query_bias, z->ld * sizeof(real));
    }
    gemm(count, z->ld, z->embedding, rows, s->key_weight + z->n_keys * z->ld, z->ld, 1, keys, keys, ld);
    gemm(count, z->ld, z->embedding, rows, s->query_weight, z->ld, 1, queries, queries, ld);
    for (size_t n = n0; n < n0 + count && z->with_beta; n++)
        s->logit_by_key[n] = dot(z->ld_e, s->embedding + n * z->ld_e, s->beta_weight + z->n_keys) + *s->beta_bias;
}

/* The scores of a tile of queries with all keys and with all values. */
static void scores_task(void *context, size_t index, int thread)
{
    (void)thread;
    const Evaluation *e = context;
    const Step *s = &e->step;
    const size_t N = s->sizes->n_keys, ld_n = fwm_padded(N), d = s->sizes->d;
    const size_t n0 = index * TILE_KEYS, count = fwm_min(TILE_KEYS, N - n0);
    const Strided rows = rows_of(e->queries + n0 * s->table_ld, s->table_ld);
    gemm(count, ld_n, d, rows, e->keys_t, ld_n, 0, NULL, e->key_scores + n0 * ld_n, ld_n);
    gemm(count, ld_n, d, rows, e->values_t, ld_n, 0, NULL, e->value_scores + n0 * ld_n, ld_n);
}

static void score_all(Evaluation *e)
{
    const FwmModelSizes *z = e->step.sizes;
    const size_t N = z->n_keys, ld_n = fwm_padded(N);
    memset(e->keys_t, 0, z->d * ld_n * sizeof(real));
    memset(e->values_t, 0, z->d * ld_n * sizeof(real));
    transpose(N, z->d, e->step.by_key, e->step.table_ld, e->keys_t, ld_n);
    transpose(N, z->d, e->step.key_weight, z->ld, e->values_t, ld_n);
    fwm_parallel_for(e->step.model->threads, fwm_tiles(N, TILE_KEYS), scores_task, e);
}

/* NumPy's float32 sum: fewer than 8 numbers in order, up to 128 in eight interleaved sums, more as the sum of two
 * halves. */
static float pairwise_sum(const float *x, size_t n)
{
    if (n < 8) {
        float total = 0;
        for (size_t i = 0; i < n; i++)
            total += x[i];
        return total;
    }
    if (n > 128) {
        const size_t half = n / 2 - n / 2 % 8;
        return pairwise_sum(x, half) + pairwise_sum(x + half, n - half);
    }
    float r[8];
    memcpy(r, x, sizeof r);
    size_t i = 8;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++)
            r[j] += x[i + j];
    float total = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for (; i < n; i++)
        total += x[i];
    return total;
}

/* Answers all queries of all sequences, and leaves the source of Omega behind `passes` passes. */
static void answer_all(Evaluation *e, size_t passes)
{
    FwmModel *model = e->step.model;
    const FwmModelSizes *z = e->step.sizes;
    fwm_parallel_for(model->threads, fwm_tiles(z->n_keys, TILE_KEYS), project_task, e);
    if (!z->with_map)
        score_all(e);
    const bool flushed = fwm_loops_flush(e->step.readout->flushes_subnormals);
    fwm_parallel_for(model->threads, e->evaluation->n_sequences, z->with_map ? mapped_task : softmax_task, e);
    fwm_loops_flush(flushed);
    if (e->step.map_shape.extension)
        model->omega_source = source_of_pass(model, passes);
}

float model_evaluate(FwmModel *model, const FwmEvaluation *evaluation)
{
    Evaluation e = {.step = step_of_model(model), .evaluation = evaluation};
    Arena arena = arena_at(model->activations);
    take_shared(&e, &arena);
    for (size_t i = 0; i < evaluation->n_sequences; i++)
        e.first_chunk[i + 1] = e.first_chunk[i] + fwm_tiles(evaluation->n_queries[i], model->sizes.batch);
    const size_t n_chunks = e.first_chunk[evaluation->n_sequences];
    answer_all(&e, n_chunks);
    return pairwise_sum(e.chunk_losses, n_chunks) / (float)n_chunks;
}

void model_recall(FwmModel *model, const FwmEvaluation *evaluation, FwmRecall *recall)
{
    Evaluation e = {.step = step_of_model(model), .evaluation = evaluation, .recalls = true};
    Arena arena = arena_at(model->activations);
    take_shared(&e, &arena);
    answer_all(&e, evaluation->n_sequences);
    *recall = (FwmRecall){0};
    size_t n_queries = 0;
    for (size_t i = 0; i < evaluation->n_sequences; i++) {
        n_queries += evaluation->n_queries[i];
        recall->loss += e.recalled[i].loss;
        recall->right += e.recalled[i].right;
        if (isnan(e.recalled[i].worst) || e.recalled[i].worst > recall->worst)
            recall->worst = e.recalled[i].worst;
    }
    recall->loss /= (double)n_queries;
    recall->right /= (double)n_queries;
}
