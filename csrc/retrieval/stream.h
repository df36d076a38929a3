/* The data of the associative-retrieval experiments, from numpy.random.RandomState(seed).
 *
 * Training and evaluation share one stream: an evaluation consumes part of it, and the next batch continues after that.
 * Here keys and values are both 0..N-1; in the published program the token of a value is the value plus N.
 *
 * FROZEN: the same seed must give the same data for ever, because the published losses are measured on them.
 * tests/retrieval/test_stream.py compares with NumPy and with recorded batches of the published program. */
#ifndef FWM_RETRIEVAL_STREAM_H
#define FWM_RETRIEVAL_STREAM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "random/mt19937.h"

#define FWM_EVALUATION_SEQUENCES 20
#define FWM_EVALUATION_QUERIES 200

typedef struct {
    FwmMT19937 bits;
    size_t n_keys;     /* N < 2^30 */
    size_t seq_len;    /* L = N, or 2N with replacement */
    size_t batch_size; /* B */
    bool replace;
    int32_t *last_value; /* (N) scratch of an evaluation: the last value written with a key, -1 if none */
} FwmStream;

/* 0, or -1 if memory is short (then there is nothing to free). */
int fwm_stream_init(FwmStream *stream, uint32_t seed, size_t n_keys, size_t batch_size, bool replace);
void fwm_stream_free(FwmStream *stream);

/* keys, values (B, L); query, answer (B): the next training batch. */
void fwm_stream_batch(FwmStream *stream, int32_t *keys, int32_t *values, int32_t *query, int32_t *answer);

/* What the sequences of an evaluation are, of which it has FWM_EVALUATION_SEQUENCES. */
typedef struct {
    size_t length;       /* tokens */
    size_t most_queries; /* distinct keys that are asked, the first in ascending order */
} FwmAsked;

FwmAsked fwm_stream_as_published(const FwmStream *stream); /* N tokens, at most FWM_EVALUATION_QUERIES queries */
FwmAsked fwm_stream_recall(const FwmStream *stream);       /* as long as those trained; every key that is in it */

/* keys, values (length); queries, answers (most_queries): the next sequence of an evaluation. Returns the number of
 * queries; the entries behind them are not set. */
size_t fwm_stream_asked_sequence(FwmStream *stream, FwmAsked asked, int32_t *keys, int32_t *values, int32_t *queries,
                                 int32_t *answers);

#endif
