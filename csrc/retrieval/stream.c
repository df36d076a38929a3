#include "retrieval/stream.h"

#include <stdlib.h>

#include "api/sizes.h"
#include "random/numpy_legacy.h"

int fwm_stream_init(FwmStream *stream, uint32_t seed, size_t n_keys, size_t batch_size, bool replace)
{
    stream->n_keys = n_keys;
    stream->seq_len = replace ? 2 * n_keys : n_keys;
    stream->batch_size = batch_size;
    stream->replace = replace;
    fwm_mt19937_seed(&stream->bits, seed);
    stream->last_value = malloc(n_keys * sizeof *stream->last_value);
    return stream->last_value == NULL ? -1 : 0;
}

void fwm_stream_free(FwmStream *stream)
{
    free(stream->last_value);
    stream->last_value = NULL;
}

/* keys, values (length): one sequence. Without replacement length is N, so that fwm_numpy_choice needs no scratch. */
static void draw_sequence(FwmStream *stream, size_t length, int32_t *keys, int32_t *values)
{
    uint32_t n_keys = (uint32_t)stream->n_keys;
    fwm_numpy_choice(&stream->bits, n_keys, length, stream->replace, keys, NULL);
    fwm_numpy_choice(&stream->bits, n_keys, length, stream->replace, values, NULL);
}

void fwm_stream_batch(FwmStream *stream, int32_t *keys, int32_t *values, int32_t *query, int32_t *answer)
{
    size_t L = stream->seq_len;
    for (size_t b = 0; b < stream->batch_size; b++, keys += L, values += L) {
        draw_sequence(stream, L, keys, values);
        size_t position = fwm_numpy_bounded(&stream->bits, (uint32_t)(L - 1));
        query[b] = keys[position];
        if (stream->replace) /* the answer is the last value written with the key */
            for (position = L - 1; keys[position] != query[b];)
                position--;
        answer[b] = values[position];
    }
}

FwmAsked fwm_stream_as_published(const FwmStream *stream)
{
    return (FwmAsked){stream->n_keys, fwm_min(stream->n_keys, FWM_EVALUATION_QUERIES)};
}

FwmAsked fwm_stream_recall(const FwmStream *stream)
{
    return (FwmAsked){stream->seq_len, stream->n_keys};
}

size_t fwm_stream_asked_sequence(FwmStream *stream, FwmAsked asked, int32_t *keys, int32_t *values, int32_t *queries,
                                 int32_t *answers)
{
    size_t N = stream->n_keys;
    int32_t *last_value = stream->last_value;
    draw_sequence(stream, asked.length, keys, values);
    for (size_t key = 0; key < N; key++)
        last_value[key] = -1;
    for (size_t t = 0; t < asked.length; t++)
        last_value[keys[t]] = values[t];

    size_t n_queries = 0;
    for (size_t key = 0; key < N && n_queries < asked.most_queries; key++) {
        if (last_value[key] < 0)
            continue;
        queries[n_queries] = (int32_t)key;
        answers[n_queries] = last_value[key];
        n_queries++;
    }
    return n_queries;
}
