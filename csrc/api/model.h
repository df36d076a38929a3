/* The model of the retrieval experiment: its sizes, the layout of its parameters, and the scratch of a step.
 *
 * All parameters are in one array `numbers` of the model's precision. The first n_trained of them are trained; the
 * arrays of their gradients and of Adam's moments have the same layout. Matrices have padded rows, and the projections
 * are stored transposed, so that the row of a value or of an embedding entry is contiguous:
 *
 *     query_weight (E x ld)          W_q^T
 *     key_bias     (ld)              b_k
 *     query_bias   (ld)              b_q
 *     beta_bias    (1)               b_b; without beta it is drawn and never read
 *     beta_weight  (N + E)           w_b; likewise
 *     key_weight   ((N + E) x ld)    W_k^T, the N rows of the values, then the E rows of the embedding
 *     embedding    (2N x ld_e)       embeddingK: the N key rows are trained; the N value rows never get a gradient
 *
 * Values are one-hot, so a token's projection is a row of a table by key plus a row of a table by value. */
#ifndef FWM_API_MODEL_H
#define FWM_API_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/kernels.h"
#include "random/omega_draws.h"

#define FWM_MAX_PARAMETERS 12

typedef struct {
    size_t n_keys;        /* N */
    size_t d;             /* hidden size */
    size_t embedding;     /* E = int(2N * 1.1) */
    size_t length;        /* L: N, or 2N with replacement */
    size_t batch;         /* B */
    size_t map, argument; /* row of the table of maps; nu, m or 0 */
    size_t readout;       /* row of the table of read-outs */
    bool with_map, with_beta;
    size_t ld, ld_e; /* d and E, padded */
} FwmModelSizes;

/* A parameter by its published name: element (i, j) at numbers[offset + i * row_stride + j * column_stride]. */
typedef struct {
    const char *name;
    size_t rows, columns; /* columns 0: a vector */
    size_t offset, row_stride, column_stride;
    bool trained;
} FwmParameter;

struct FwmModel {
    FwmModelSizes sizes;
    const FwmKernels *kernels;
    FwmParameter parameters[FWM_MAX_PARAMETERS];
    size_t n_parameters;
    /* offsets in numbers */
    size_t query_weight, key_bias, query_bias, beta_bias, beta_weight, key_weight, embedding;
    size_t n_trained, n_numbers;
    void *numbers;
    void *gradients, *moment1, *moment2; /* n_trained each */
    uint64_t steps;                      /* of Adam so far */
    FwmBlockSource omega_source;
    bool redraws;      /* FAVOR+: each pass has the source's next Omega; else all have the first */
    int threads;       /* for this call */
    void *activations; /* of a step, shared by all threads */
    void *scratch;     /* scratch_stride bytes for each of scratch_threads threads */
    size_t scratch_stride;
    int scratch_threads;
};

/* Sequences with one query each. omega: d x m numbers of the model's precision, or NULL to draw a new one. */
struct FwmBatch {
    size_t n;                      /* sequences, at most sizes.batch */
    const int32_t *keys, *values;  /* n x L */
    const int32_t *query, *answer; /* n; answer is NULL if no loss is wanted */
    const void *omega;
};

/* Sequences; number s has n_queries[s] queries at queries + s * max_queries. */
struct FwmEvaluation {
    size_t n_sequences, max_queries;
    size_t length;                    /* at most sizes.length */
    const int32_t *keys, *values;     /* n_sequences x length */
    const int32_t *queries, *answers; /* n_sequences x max_queries */
    const size_t *n_queries;
};

/* What a memory returns of its keys, over all queries of all sequences alike. */
struct FwmRecall {
    double loss;  /* the mean of 0.5 |one-hot(answer) - y|^2 */
    double right; /* the share whose answer has the largest y, alone */
    double worst; /* the largest loss of a query */
};

#endif
