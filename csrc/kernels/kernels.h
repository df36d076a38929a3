/* What one copy of the kernels (a precision, a variant of the instruction set) offers to the layers above. Arrays of
 * the copy's number type come as void pointers, because the layers above know no number type. */
#ifndef FWM_KERNELS_H
#define FWM_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels/sizes.h"

typedef struct {
    const char *name;     /* on the command line */
    const char *function; /* in fwm_py.feature_maps */
    const char *argument; /* what --attn_arg means, "" if nothing */
    const char *summary;
} FwmMapInfo;

typedef struct {
    const char *name;     /* on the command line */
    const char *function; /* in fwm_py.readouts */
    bool uses_map;        /* false: attends to unmapped keys, and is chosen by --attn_name */
    bool uses_beta;
    const char *summary;
} FwmRuleInfo;

/* How the general memories are gated, how a write is scaled, and how keys and queries are normalised. */
typedef enum { FWM_NO_GATE = 0, FWM_SCALAR_GATE = 1, FWM_CHANNEL_GATE = 2 } FwmGate;
typedef enum { FWM_NO_STRENGTH, FWM_BETA, FWM_ERASE_AND_WRITE } FwmStrength;
typedef enum { FWM_NO_NORM, FWM_L2_NORM, FWM_SUM_NORM } FwmNorm;

typedef struct {
    const char *function;           /* in fwm_py.kernels */
    bool scalar_gate, channel_gate; /* g is (B, T, HV), or (B, T, HV, K); with neither there is no g */
    FwmStrength strength;           /* nothing; beta (B, T, HV); b (B, T, HV, K) and w (B, T, HV, V) */
    bool normalizes;                /* has normalize and eps, and the sum of keys as part of the state */
    bool has_qk_norm;
    bool clamps; /* has clamp_first */
    const char *summary;
} FwmMemoryInfo;

/* Tokens of an array: the heads' numbers of a token lie side by side, and the next token's at a distance. */
typedef struct {
    const void *data; /* NULL where a call has no such array */
    size_t stride;    /* numbers from a token to the next */
} FwmTokens;

/* One call of a general memory: n_sequences, whose tokens stand one behind the other. Arrays are of the copy's number
 * type and, but for FwmTokens, packed; offsets count tokens. HQ is H, or a multiple of HV; HV is a multiple of H. NULL
 * where a call has no such array. */
typedef struct {
    size_t rule; /* row of the table */
    FwmGate gate;
    FwmNorm qk_norm;
    bool normalize, clamp_first;
    bool recurrent; /* the plain recurrence in place of the fast form */
    double scale, eps;
    size_t n_sequences;
    const int64_t *offsets; /* n_sequences + 1, from 0 */
    size_t HQ, H, HV, K, V;
    FwmTokens q, k, v;             /* (tokens, HQ, K), (tokens, H, K), (tokens, HV, V) */
    FwmTokens g;                   /* (tokens, HV) or (tokens, HV, K) */
    FwmTokens beta, b, w;          /* (tokens, HV), (tokens, HV, K), (tokens, HV, V) */
    const void *initial_state;     /* (n_sequences, HV, K, V) */
    const void *initial_sum;       /* (n_sequences, H, K): of keys, if normalize */
    void *o;                       /* (tokens, max(HQ, HV), V) */
    void *final_state, *final_sum; /* may be the initial ones */
    FwmTokens dout;
    const void *dfinal_state, *dfinal_sum;
    void *dq, *dk, *dv, *dg, *dbeta, *db, *dw, *dinitial_state, *dinitial_sum;
} FwmMemory;

/* One call of softmax attention: a query of token t sees all S keys, or, if causal (S >= T), keys 0 .. S - T + t.
 * Arrays are packed, of the copy's number type. HQ is a multiple of H: query head hq reads key head hq / (HQ / H). No
 * size is 0. */
typedef struct {
    bool causal;
    double scale;
    size_t B, T, S, HQ, H, K, V;
    const void *q, *k, *v; /* (B, T, HQ, K), (B, S, H, K), (B, S, H, V) */
    void *o, *lse;         /* (B, T, HQ, V), (B, T, HQ); forward: lse or NULL; backward: what it wrote, or both NULL */
    const void *dout;      /* (B, T, HQ, V) */
    void *dq, *dk, *dv;    /* zeros before the call */
} FwmAttention;

/* The shortest and the longest convolution. */
#define FWM_FEWEST_TAPS 2
#define FWM_MOST_TAPS 4

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
} FwmConvolution;

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
} FwmRmsNorm;

typedef struct FwmModel FwmModel;
typedef struct FwmBatch FwmBatch;
typedef struct FwmEvaluation FwmEvaluation;

typedef struct {
    const char *variant;   /* "baseline", "avx2", "avx512" */
    const char *precision; /* "float32", "float64" */
    size_t real_size;

    const FwmMapInfo *(*map_info)(size_t row); /* NULL behind the last row */
    const FwmRuleInfo *(*rule_info)(size_t row);

    /* Feature maps on n tokens x (n x d, packed): phi (n x p, packed). omega (d x m) for maps with an extension.
     * scratch: map_scratch bytes. */
    size_t (*map_features)(size_t map, size_t d, size_t argument);
    bool (*map_has_extension)(size_t map);
    size_t (*map_scratch)(size_t map, size_t d, size_t argument);
    void (*map_forward)(size_t map, size_t d, size_t argument, size_t n, const void *x, const void *omega, void *phi,
                        void *scratch);
    void (*map_backward)(size_t map, size_t d, size_t argument, size_t n, const void *dphi, const void *x,
                         const void *omega, void *dx, void *scratch);

    /* Update rules on one sequence: keys (L x p) and query (p) packed. scratch: rule_scratch bytes. */
    size_t (*rule_scratch)(size_t rule, size_t length, size_t p, size_t n_values);
    void (*rule_forward)(size_t rule, size_t length, size_t p, size_t n_values, const void *keys, const int32_t *values,
                         const void *beta, const void *query, void *y, void *scratch);
    void (*rule_backward)(size_t rule, size_t length, size_t p, size_t n_values, const void *dy, const void *keys,
                          const int32_t *values, const void *beta, const void *query, void *dkeys, void *dbeta,
                          void *dquery, void *scratch);

    /* FAVOR+: normals (d x d blocks, one behind the other, as drawn) become omega (d x m). */
    size_t (*make_omega_scratch)(size_t d); /* bytes */
    void (*make_omega)(size_t d, size_t m, const float *normals, void *omega, void *scratch);

    /* The general memories: every token of every head gets an output. scratch: bytes for this call. */
    struct {
        const FwmMemoryInfo *(*info)(size_t row); /* NULL behind the last row */
        size_t (*forward_scratch)(const FwmMemory *, int threads);
        size_t (*backward_scratch)(const FwmMemory *, int threads);
        void (*forward)(const FwmMemory *, int threads, void *scratch);
        void (*backward)(const FwmMemory *, int threads, void *scratch);
    } memory;

    /* Softmax attention in tiles. scratch: bytes for this call. */
    struct {
        size_t (*forward_scratch)(const FwmAttention *, int threads);
        size_t (*backward_scratch)(const FwmAttention *, int threads);
        void (*forward)(const FwmAttention *, int threads, void *scratch);
        void (*backward)(const FwmAttention *, int threads, void *scratch);
    } attention;

    /* The causal convolution. scratch: bytes for this call; the forward needs none. */
    struct {
        size_t (*backward_scratch)(const FwmConvolution *);
        void (*forward)(const FwmConvolution *, int threads);
        void (*backward)(const FwmConvolution *, int threads, void *scratch);
    } convolution;

    /* RMS norm. scratch: bytes for this call; the forward needs none. */
    struct {
        size_t (*backward_scratch)(const FwmRmsNorm *);
        void (*forward)(const FwmRmsNorm *, int threads);
        void (*backward)(const FwmRmsNorm *, int threads, void *scratch);
    } norm;

    /* The model of the experiments (kernels/model/model.h). */
    struct {
        size_t (*activations)(const FwmModel *); /* bytes shared by all threads */
        size_t (*scratch)(const FwmModel *);     /* bytes for each thread */
        double (*loss)(FwmModel *, const FwmBatch *);
        double (*gradients)(FwmModel *, const FwmBatch *);       /* into model->gradients; returns the loss */
        double (*step)(FwmModel *, const FwmBatch *, double lr); /* loss, gradients, Adam; returns the loss before */
        void (*read_out)(FwmModel *, const FwmBatch *, void *y); /* n x N */
        float (*evaluate)(FwmModel *, const FwmEvaluation *);
    } model;
} FwmKernels;

#endif
