/* One pass of the model, forward or forward and backward: what its phases share, and its layout. A phase is a loop of
 * tasks over tiles of rows or blocks of sequences. How these are cut does not depend on the number of threads, and
 * every sum has a fixed order. */
#ifndef FWM_KERNELS_RETRIEVAL_STEP_H
#define FWM_KERNELS_RETRIEVAL_STEP_H

#include "api/model.h"
#include "kernels/base/arena.h"
#include "kernels/base/gemm.h"
#include "kernels/base/real.h"
#include "kernels/maps/map.h"
#include "kernels/retrieval/readouts/readout.h"

/* The batch is divided into at most this many blocks of sequences. Each has its own tables of gradients, which are
 * summed in the order of the blocks. */
#define SEQUENCE_BLOCKS 8
#define TILE_KEYS 12    /* keys, that is rows of the embedding, projected or updated by one task */
#define TILE_ENTRIES 48 /* rows of the transposed weights */

typedef enum { LOSS_ONLY, GRADIENTS, UPDATE } Purpose;

/* The product left right, whose rows are computed tile by tile; left has k columns. */
typedef struct {
    Strided left;
    const real *right;
    size_t ld_right, k;
    /* Whether a tile of TILE_KEYS keys is not all zeros: rows of right in the weights' gradient, of left in the
     * embedding's; NULL if none is. */
    const bool *live;
} TiledProduct;

typedef struct {
    real lr_over_bias1, inverse_root_bias2; /* lr / (1 - 0.9^t), 1 / sqrt(1 - 0.999^t) */
} AdamStep;

typedef struct {
    FwmModel *model;
    const FwmModelSizes *sizes;
    const FwmBatch *batch;
    Purpose purpose;
    AdamStep adam;
    MapShape map_shape;
    const FeatureMap *map;
    const Readout *readout;
    bool leaves_out; /* tokens of which all features are 0 */
    /* parameters and their gradients */
    real *key_bias, *query_bias, *beta_bias, *beta_weight, *query_weight, *key_weight, *embedding;
    real *dkey_bias, *dquery_bias, *dbeta_bias, *dbeta_weight, *dquery_weight, *dkey_weight, *dembedding;
    size_t table_ld; /* of the tables below: map_shape.ld, or ld for softmax */
    /* activations of the pass, shared by all threads */
    real *by_key;         /* N x table_ld: projections of the keys, with the bias */
    real *by_value;       /* N x table_ld: projections of the values */
    real *omega;          /* d x padded(m) */
    real *omega_t;        /* m x padded(d) */
    real *query_rows;     /* B x ld_e: embeddings of the queries */
    real *queries;        /* B x table_ld: their projections */
    real *dqueries;       /* B x table_ld */
    real *dquery_rows;    /* B x ld_e */
    real *key_weight_t;   /* ld x ld_e: the embedding part of W_k (key_weight is W_k^T), before the update */
    real *query_weight_t; /* ld x ld_e: W_q, before the update */
    real *block_tables;   /* blocks x 2 x N x table_ld: gradients of by_key, by_value; at last block 0 has the sum */
    bool *touched;        /* blocks x 2 x N, if leaves_out: whether the row has a gradient, else it is not stored */
    bool *live;           /* tiles of TILE_KEYS keys: whether a row of the sum by key has a gradient */
    real *largest_u;      /* 2 x N: bounds of by_key's and by_value's rows (FeatureMap.largest), if leaves_out */
    real *logit_by_key;   /* N: w_b . embedding + b_b; that of a value is an entry of beta_weight itself */
    real *block_logits;   /* blocks x 2 x padded(N): gradients of the logits by key, by value; likewise */
    real *beta_weight_before; /* ld_e: beta_weight's embedding part before the update */
    real *y;                  /* B x padded(N) */
    double *losses;           /* B */
    /* softmax */
    real *queries_t;                   /* d x padded(B) */
    real *folded_t;                    /* (N + E) x padded(B): [W_v; W_k] q, transposed */
    real *folded;                      /* B x ld_e: q W_k */
    real *key_scores;                  /* N x padded(B) */
    real *dkey_scores, *dvalue_scores; /* B x padded(N) each */
    real *dfolded;                     /* B x ld_e */
    /* the gradients of the big matrices */
    TiledProduct weight_gradient;    /* of key_weight's E embedding rows */
    TiledProduct embedding_gradient; /* of embedding's N key rows, without the queries' share */
} Step;

#define step_activations FWM_NAME(step_activations)
#define loss_of_sequence FWM_NAME(loss_of_sequence)
#define step_of_model FWM_NAME(step_of_model)
#define step_begin FWM_NAME(step_begin)

/* step_of_model fills in what follows from the model alone; step_begin also lays out the activations, whose bytes are
 * step_activations. */
Step step_of_model(FwmModel *model);
Step step_begin(FwmModel *model, const FwmBatch *batch, Purpose purpose);
size_t step_activations(const FwmModel *model);

/* 0.5 |one-hot(answer) - y|^2 of sequence b; dy (N) is the gradient of its share of the mean over the batch. */
double loss_of_sequence(const Step *s, size_t b, real *dy);

static inline Arena thread_scratch(const Step *s, int thread)
{
    return arena_of_thread(s->model->scratch, thread, s->model->scratch_stride);
}

#endif
