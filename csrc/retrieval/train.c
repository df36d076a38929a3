/* The training loop: draw a batch, step, and every 100 steps evaluate and ask whether to go on. */
#include "retrieval/train.h"

#include <stdlib.h>

#include "retrieval/pace.h"

#define POLL_SECONDS 0.1

int fwm_evaluate(FwmModel *model, FwmStream *stream, FwmCriterion criterion, FwmRecall *found)
{
    const FwmAsked asked = criterion == FWM_RECALL ? fwm_stream_recall(stream) : fwm_stream_as_published(stream);
    const size_t S = FWM_EVALUATION_SEQUENCES, L = asked.length, Q = asked.most_queries;
    size_t n_queries[FWM_EVALUATION_SEQUENCES];
    int32_t *tokens = malloc(S * (2 * L + 2 * Q) * sizeof(int32_t));
    if (!tokens)
        return -1;
    int32_t *keys = tokens, *values = keys + S * L, *queries = values + S * L, *answers = queries + S * Q;
    for (size_t i = 0; i < S; i++)
        n_queries[i] =
            fwm_stream_asked_sequence(stream, asked, keys + i * L, values + i * L, queries + i * Q, answers + i * Q);
    const FwmEvaluation evaluation = {.n_sequences = S,
                                      .max_queries = Q,
                                      .length = L,
                                      .keys = keys,
                                      .values = values,
                                      .queries = queries,
                                      .answers = answers,
                                      .n_queries = n_queries};
    if (criterion == FWM_RECALL)
        model->kernels->model.recall(model, &evaluation, found);
    else
        *found = (FwmRecall){.loss = model->kernels->model.evaluate(model, &evaluation)};
    free(tokens);
    return 0;
}

/* A batch in a single allocation: keys and values (B x L), query and answer (B). */
static int32_t *allocate_batch(const FwmStream *stream, FwmBatch *batch)
{
    const size_t B = stream->batch_size, BL = B * stream->seq_len;
    int32_t *tokens = malloc((2 * BL + 2 * B) * sizeof(int32_t));
    if (tokens)
        *batch = (FwmBatch){
            .n = B, .keys = tokens, .values = tokens + BL, .query = tokens + 2 * BL, .answer = tokens + 2 * BL + B};
    return tokens;
}

static FwmTrainStatus run(FwmModel *model, FwmStream *stream, double lr, uint64_t max_steps, FwmCriterion criterion,
                          const FwmTrainCallbacks *callbacks, const FwmBatch *batch, int32_t *tokens)
{
    const size_t BL = batch->n * stream->seq_len;
    FwmPace pace = fwm_pace_start(model->threads);
    double last_poll = fwm_seconds();
    for (uint64_t step = 1; step <= max_steps; step++) {
        fwm_stream_batch(stream, tokens, tokens + BL, tokens + 2 * BL, tokens + 2 * BL + batch->n);
        model->threads = fwm_pace_threads(&pace);
        const double loss = model->kernels->model.step(model, batch, lr);
        const double now = fwm_pace_step_done(&pace);
        if (step % FWM_STEPS_PER_EVALUATION == 0) {
            FwmRecall found;
            if (fwm_evaluate(model, stream, criterion, &found) < 0)
                return FWM_TRAIN_NO_MEMORY;
            const int answer = callbacks->on_evaluation(callbacks->context, step, &found);
            if (answer)
                return answer > 0 ? FWM_TRAIN_ENDED : FWM_TRAIN_STOPPED;
        }
        if (now - last_poll > POLL_SECONDS) {
            if (callbacks->poll(callbacks->context, step, loss))
                return FWM_TRAIN_STOPPED;
            last_poll = now;
        }
    }
    return FWM_TRAIN_ENDED;
}

FwmTrainStatus fwm_train(FwmModel *model, FwmStream *stream, double lr, uint64_t max_steps, FwmCriterion criterion,
                         const FwmTrainCallbacks *callbacks)
{
    FwmBatch batch;
    int32_t *tokens = allocate_batch(stream, &batch);
    if (!tokens)
        return FWM_TRAIN_NO_MEMORY;
    const FwmTrainStatus status = run(model, stream, lr, max_steps, criterion, callbacks, &batch, tokens);
    free(tokens);
    return status;
}
