/* What one copy of the kernels (a precision, a variant of the instruction set) offers to the layers above. Arrays of
 * the copy's number type come as void pointers, because the layers above know no number type. */
#ifndef FWM_API_KERNELS_H
#define FWM_API_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "api/sizes.h"

/* ---- rows of the tables: what Python, the command line, the help and the tests follow ---- */

typedef struct {
    const char *name;     /* on the command line */
    const char *function; /* in fwm_py.feature_maps */
    const char *argument; /* what --attn_arg means, "" if nothing */
    bool positive;        /* no feature is negative */
    bool takes_omega;     /* random features: the argument is the number of omega's columns */
    const char *summary;
} FwmMapInfo;

/* How a rule is gated, how a write is scaled, and how keys and queries are normalised. */
typedef enum { FWM_NO_GATE = 0, FWM_SCALAR_GATE = 1, FWM_CHANNEL_GATE = 2 } FwmGate;
typedef enum { FWM_NO_STRENGTH, FWM_BETA, FWM_ERASE_AND_WRITE } FwmStrength;
typedef enum { FWM_NO_NORM, FWM_L2_NORM, FWM_SUM_NORM } FwmNorm;

/* The fast form of a rule, or its plain recurrence. */
typedef enum { FWM_CHUNKED, FWM_RECURRENT } FwmMethod;

typedef struct {
    const char *name;               /* in one word */
    const char *function;           /* in fwm_py.rules */
    bool scalar_gate, channel_gate; /* g is (B, T, HV), or (B, T, HV, K); with neither there is no g */
    FwmStrength strength;           /* nothing; beta (B, T, HV); b (B, T, HV, K) and w (B, T, HV, V) */
    bool normalizes;                /* has normalize and eps, and the sum of keys as part of the state */
    bool has_qk_norm;
    bool clamps; /* has clamp_first */
    const char *summary;
} FwmRuleInfo;

typedef struct {
    const char *name;     /* on the command line */
    const char *function; /* in fwm_py.readouts */
    bool uses_map;        /* false: attends to unmapped keys, and is chosen by --attn_name */
    bool uses_beta;
    const char *summary;
} FwmReadoutInfo;

/* ---- operations ---- */

/* One direction of an operation: the call is a struct below, and scratch as many bytes as the first function says. */
typedef struct {
    size_t (*scratch)(const void *call, int threads);
    void (*run)(const void *call, int threads, void *scratch);
} FwmPass;

typedef struct {
    FwmPass forward, backward;
    bool flushes_subnormals; /* in its parallel loops: fwm_loops_flush */
} FwmOperation;

/* One call of a feature map, on n packed tokens of d numbers. NULL where a call has no such array. */
typedef struct {
    size_t map;            /* row of the table */
    size_t d, argument, n; /* argument: nu, m, or 0 */
    const void *x, *omega; /* (n, d), (d, m) */
    void *phi;             /* (n, p) */
    const void *dphi;
    void *dx;
} FwmMapCall;

/* How the numbers of tokens are stored: in the copy's number type, or, for the copies in float32, in 16 bits. */
typedef enum { FWM_REAL, FWM_BFLOAT16, FWM_FLOAT16 } FwmNumbers;

/* Tokens of an array: the heads' numbers of a token lie side by side, and the next token's at a distance. */
typedef struct {
    const void *data;   /* NULL where a call has no such array */
    size_t stride;      /* numbers from a token to the next */
    FwmNumbers numbers; /* FWM_REAL but in a call of a rule */
} FwmTokens;

/* One call of a rule: n_sequences, whose tokens stand one behind the other. Arrays are packed, but for FwmTokens, and
 * of the copy's number type, but that o has the numbers of q, and a gradient those of its tokens; offsets count tokens.
 * HQ is H, or a multiple of HV; HV is a multiple of H. NULL where a call has no such array. */
typedef struct {
    size_t rule; /* row of the table */
    FwmGate gate;
    FwmNorm qk_norm;
    bool normalize, clamp_first;
    bool state_v_first; /* states are V x K, not K x V */
    FwmMethod method;
    double scale, eps;
    size_t n_sequences;
    const int64_t *offsets; /* n_sequences + 1, from 0 */
    size_t HQ, H, HV, K, V;
    FwmTokens q, k, v;            /* (tokens, HQ, K), (tokens, H, K), (tokens, HV, V) */
    FwmTokens g;                  /* (tokens, HV) or (tokens, HV, K) */
    FwmTokens beta, b, w;         /* (tokens, HV), (tokens, HV, K), (tokens, HV, V) */
    FwmTokens erase;              /* (tokens, HV): made and used by the kernels, where a delta rule normalises */
    const void *initial_state;    /* (n_sequences, HV, K, V) */
    const void *initial_sum;      /* (n_sequences, H, K): of keys, if normalize */
    const int32_t *state_indices; /* (n_sequences): which of more initial and final states are theirs; NULL: 0, 1, .. */
    void *o;                      /* (tokens, max(HQ, HV), V) */
    void *final_state, *final_sum; /* may be the initial ones */
    size_t keep_every; /* a multiple of FWM_TILE; a sequence keeps the states after so many of its tokens, */
    void *kept_states, *kept_sums; /* twice as many, ..: (.., HV, K, V), (.., H, K), a sequence's behind the others' */
    FwmTokens dout;
    const void *dfinal_state, *dfinal_sum;
    void *dq, *dk, *dv, *dg, *dbeta, *db, *dw, *derase, *dinitial_state, *dinitial_sum;
} FwmRuleCall;

/* One call of linear attention without a causal mask: every query reads the sum of all writes, of a sequence with a
 * length those of the keys before it. T and N may be 0. Heads are as in FwmRuleCall; NULL where a call has no such
 * array. */
typedef struct {
    bool normalize;
    double scale, eps;
    size_t B, T, N, HQ, H, HV, K, V;
    const int32_t *key_lengths;    /* (B), 0..N; NULL: N */
    FwmTokens q, k, v;             /* (B, T, HQ, K), (B, N, H, K), (B, N, HV, V) */
    const void *initial_state;     /* (B, HV, K, V) */
    const void *initial_sum;       /* (B, H, K): of keys, if normalize */
    void *o;                       /* (B, T, max(HQ, HV), V) */
    void *final_state, *final_sum; /* may be the initial ones */
    const void *dout, *dfinal_state, *dfinal_sum;
    void *dq, *dk, *dv, *dinitial_state, *dinitial_sum;
} FwmNoncausalCall;

/* One call of a read-out: B sequences of L keys with one-hot values, and a query each. Arrays are packed. NULL where a
 * call has no such array. */
typedef struct {
    size_t readout; /* row of the table */
    size_t B, L, p, n_values;
    const void *keys;         /* (B, L, p) */
    const int32_t *values;    /* (B, L), each in 0..n_values-1 */
    const void *beta, *query; /* (B, L), (B, p) */
    void *y;                  /* (B, n_values) */
    const void *dy;
    void *dkeys, *dbeta, *dquery;
} FwmReadoutCall;

/* One call of softmax attention: a query of token t sees all S keys, or, if causal (S >= T), keys 0 .. S - T + t; of a
 * sequence with a length, only keys before it. A query without keys gives 0 and lse -inf. Arrays are packed, of the
 * copy's number type. HQ is a multiple of H: query head hq reads key head hq / (HQ / H). No size is 0. */
typedef struct {
    bool causal;
    double scale;
    size_t B, T, S, HQ, H, K, V;
    const int32_t *key_lengths; /* (B), 0..S; NULL: S */
    const void *q, *k, *v;      /* (B, T, HQ, K), (B, S, H, K), (B, S, H, V) */
    void *o, *lse;    /* (B, T, HQ, V), (B, T, HQ); forward: lse or NULL; backward: what it wrote, or both NULL */
    const void *dout; /* (B, T, HQ, V) */
    void *dq, *dk, *dv;
} FwmAttentionCall;

/* The shortest and the longest convolution. */
#define FWM_FEWEST_TAPS 1
#define FWM_MOST_TAPS 16

/* One call of the causal convolution, a filter of W numbers for each of D channels, along n_sequences, whose tokens
 * stand one behind the other. Arrays are packed, of the copy's number type. A state is the last W - 1 tokens that a
 * sequence has seen, the oldest first. NULL where a call has no such array. */
typedef struct {
    bool silu;
    size_t n_sequences;
    const int64_t *offsets;        /* n_sequences + 1, from 0 */
    size_t D, W;                   /* D at least 1 */
    const void *x, *weight, *bias; /* (tokens, D), (D, W), (D) */
    const void *initial_state;     /* (n_sequences, W - 1, D) */
    void *y, *final_state;         /* (tokens, D), and a state that may be the initial one */
    const void *dy, *dfinal_state;
    void *dx, *dweight, *dbias, *dinitial_state;
} FwmConvolutionCall;

/* One call of the update of a convolution's states by T tokens of each of B sequences. A state has the last L tokens,
 * L at least W - 1: the oldest first, or where `positions` says how many tokens came before, token p of the sequence in
 * row p mod L. */
typedef struct {
    FwmConvolutionCall convolution; /* silu, D, W, weight, bias, x (B, T, D) and y */
    size_t B, T, L;
    void *states;                 /* (P, L, D), changed in place */
    const int32_t *state_indices; /* (B), from 1: whose states; 0: nobody's, and y is 0; NULL: 1, 2, .. */
    const int32_t *positions;     /* (B), or NULL */
} FwmConvolutionUpdateCall;

/* How a norm is gated: not at all, or by a function of the gate. */
typedef enum { FWM_UNGATED, FWM_LOGISTIC_GATE, FWM_SILU_GATE } FwmGating;

/* One call of RMS norm, on packed rows of D numbers. NULL where a call has no such array. */
typedef struct {
    FwmGating gating;
    double eps;
    size_t rows, D;                /* D at least 1 */
    const void *x, *weight, *gate; /* (rows, D), (D), (rows, D) */
    void *y;
    const void *dy;
    void *dx, *dweight, *dgate;
} FwmNormCall;

typedef struct FwmModel FwmModel;
typedef struct FwmBatch FwmBatch;
typedef struct FwmEvaluation FwmEvaluation;
typedef struct FwmRecall FwmRecall;

/* ---- the copy ---- */

typedef struct {
    const char *variant;   /* "baseline", "avx2", "avx512", "avx512_bf16" */
    const char *precision; /* "float32", "float64" */
    size_t real_size;

    /* Rows of the tables; NULL behind the last. */
    const FwmMapInfo *(*map_info)(size_t row);
    const FwmRuleInfo *(*rule_info)(size_t row);
    const FwmReadoutInfo *(*readout_info)(size_t row);
    size_t (*map_features)(size_t map, size_t d, size_t argument);

    FwmOperation map, rule, noncausal, readout, attention, convolution, convolution_update, norm;

    /* FAVOR+: normals (d x d blocks, one behind the other, as drawn) become omega (d x m). */
    size_t (*make_omega_scratch)(size_t d); /* bytes */
    void (*make_omega)(size_t d, size_t m, const float *normals, void *omega, void *scratch);

    /* The model of the retrieval experiment (api/model.h). */
    struct {
        size_t (*activations)(const FwmModel *); /* bytes shared by all threads */
        size_t (*scratch)(const FwmModel *);     /* bytes for each thread */
        double (*loss)(FwmModel *, const FwmBatch *);
        double (*gradients)(FwmModel *, const FwmBatch *);       /* into model->gradients; returns the loss */
        double (*step)(FwmModel *, const FwmBatch *, double lr); /* loss, gradients, Adam; returns the loss before */
        void (*read_out)(FwmModel *, const FwmBatch *, void *y); /* n x N */
        float (*evaluate)(FwmModel *, const FwmEvaluation *);    /* as published */
        void (*recall)(FwmModel *, const FwmEvaluation *, FwmRecall *);
    } model;
} FwmKernels;

#endif
