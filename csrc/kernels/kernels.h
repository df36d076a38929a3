/* What one copy of the kernels (a precision, a variant of the instruction set) offers to the layers above. Arrays of the
 * copy's number type come as void pointers, because the layers above know no number type. */
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

typedef struct FwmModel FwmModel;
typedef struct FwmBatch FwmBatch;
typedef struct FwmEvaluation FwmEvaluation;

typedef struct {
    const char *variant;   /* "baseline", "avx2", "avx512" */
    const char *precision; /* "float32", "float64" */
    size_t real_size;

    const FwmMapInfo *(*map_info)(size_t row);   /* NULL behind the last row */
    const FwmRuleInfo *(*rule_info)(size_t row);

    /* Feature maps on n tokens x (n x d, packed): phi (n x p, packed). omega (d x m) for maps with an extension.
     * scratch: map_scratch bytes. */
    size_t (*map_features)(size_t map, size_t d, size_t argument);
    bool (*map_has_extension)(size_t map);
    size_t (*map_scratch)(size_t map, size_t d, size_t argument);
    void (*map_forward)(size_t map, size_t d, size_t argument, size_t n, const void *x, const void *omega, void *phi,
                        void *scratch);
    void (*map_backward)(size_t map, size_t d, size_t argument, size_t n, const void *dphi, const void *x, const void *omega,
                         void *dx, void *scratch);

    /* Update rules on one sequence: keys (L x p) and query (p) packed. scratch: rule_scratch bytes. */
    size_t (*rule_scratch)(size_t rule, size_t length, size_t p, size_t n_values);
    void (*rule_forward)(size_t rule, size_t length, size_t p, size_t n_values, const void *keys, const int32_t *values,
                         const void *beta, const void *query, void *y, void *scratch);
    void (*rule_backward)(size_t rule, size_t length, size_t p, size_t n_values, const void *dy, const void *keys,
                          const int32_t *values, const void *beta, const void *query, void *dkeys, void *dbeta, void *dquery,
                          void *scratch);

    /* FAVOR+: normals (d x d blocks, one behind the other, as drawn) become omega (d x m). */
    size_t (*make_omega_scratch)(size_t d); /* bytes */
    void (*make_omega)(size_t d, size_t m, const float *normals, void *omega, void *scratch);

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
