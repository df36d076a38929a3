/* The table of this copy of the kernels, and the plain-array forms of maps and rules that Python calls. */
#include <string.h>

#include "kernels/attention/softmax_attention.h"
#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/convolution/convolution.h"
#include "kernels/kernels.h"
#include "kernels/maps/map.h"
#include "kernels/maps/omega.h"
#include "kernels/memory/memory.h"
#include "kernels/model/model_entry.h"
#include "kernels/norm/norm.h"
#include "kernels/readouts/readout.h"

static const FwmMapInfo *map_info(size_t row)
{
    return feature_maps[row] ? &feature_maps[row]->info : NULL;
}

static const FwmRuleInfo *rule_info(size_t row)
{
    return readouts[row] ? &readouts[row]->info : NULL;
}

static size_t map_features(size_t map, size_t d, size_t argument)
{
    return feature_maps[map]->features(d, argument);
}

static bool map_has_extension(size_t map)
{
    return feature_maps[map]->extension != NULL;
}

/* Copies n rows between a packed array (rows of `packed`) and a padded one (rows of ld), either way. */
static void pad_rows(size_t n, const real *in, size_t packed, real *out, size_t ld)
{
    for (size_t i = 0; i < n; i++) {
        memcpy(out + i * ld, in + i * packed, packed * sizeof(real));
        memset(out + i * ld + packed, 0, (ld - packed) * sizeof(real));
    }
}

static void unpad_rows(size_t n, const real *in, size_t ld, real *out, size_t packed)
{
    for (size_t i = 0; i < n; i++)
        memcpy(out + i * packed, in + i * ld, packed * sizeof(real));
}

/* A tile of tokens on its way through a map. */
typedef struct {
    MapShape shape;
    real *dpre, *pre;      /* TILE x ld; numbers of no meaning lie before and behind pre and dphi (map.h) */
    real *phi, *dphi;      /* TILE x ld_features */
    real *omega, *omega_t; /* d x padded(m), m x padded(d) */
    real *scratch;
    size_t numbers; /* of all these */
} MapTile;

static MapTile map_tile(const FeatureMap *map, size_t d, size_t argument, real *memory)
{
    MapTile w = {.shape = map_shape(map, d, argument)};
    const MapShape *s = &w.shape;
    const size_t sizes[] = {FWM_TILE * s->ld,
                            FWM_TILE * s->ld,
                            FWM_TILE * s->ld_features,
                            FWM_TILE * s->ld_features,
                            d * fwm_padded(s->extension),
                            s->extension * fwm_padded(d),
                            map->scratch ? map->scratch(s) : 0};
    real **const arrays[] = {&w.dpre, &w.pre, &w.phi, &w.dphi, &w.omega, &w.omega_t, &w.scratch};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (memory)
            *arrays[i] = memory + w.numbers;
        w.numbers += fwm_padded(sizes[i]);
    }
    return w;
}

static size_t map_scratch(size_t map, size_t d, size_t argument)
{
    return map_tile(feature_maps[map], d, argument, NULL).numbers * sizeof(real);
}

static MapTile begin_map(size_t map, size_t d, size_t argument, const real *omega, void *scratch)
{
    MapTile w = map_tile(feature_maps[map], d, argument, scratch);
    const size_t m = w.shape.extension;
    if (m) {
        pad_rows(d, omega, m, w.omega, fwm_padded(m));
        memset(w.omega_t, 0, m * fwm_padded(d) * sizeof(real));
        transpose(d, m, omega, m, w.omega_t, fwm_padded(d));
    }
    return w;
}

static void load_tile(const MapTile *w, size_t n, const real *x)
{
    const size_t ld_m = fwm_padded(w->shape.extension);
    pad_rows(n, x, w->shape.d, w->pre, w->shape.ld);
    if (w->shape.extension)
        gemm(n, ld_m, w->shape.d, rows_of(w->pre, w->shape.ld), w->omega, ld_m, 0, NULL, w->pre + w->shape.u,
             w->shape.ld);
}

static void map_forward(size_t map, size_t d, size_t argument, size_t n, const void *x, const void *omega, void *phi,
                        void *scratch)
{
    const MapTile w = begin_map(map, d, argument, omega, scratch);
    const size_t p = w.shape.features;
    for (size_t t = 0; t < n; t += FWM_TILE) {
        const size_t count = fwm_min(FWM_TILE, n - t);
        load_tile(&w, count, (const real *)x + t * d);
        feature_maps[map]->forward(&w.shape, count, w.pre, w.phi, w.scratch);
        unpad_rows(count, w.phi, w.shape.ld_features, (real *)phi + t * p, p);
    }
}

static void map_backward(size_t map, size_t d, size_t argument, size_t n, const void *dphi, const void *x,
                         const void *omega, void *dx, void *scratch)
{
    const MapTile w = begin_map(map, d, argument, omega, scratch);
    const size_t p = w.shape.features, ld_d = fwm_padded(d);
    for (size_t t = 0; t < n; t += FWM_TILE) {
        const size_t count = fwm_min(FWM_TILE, n - t);
        load_tile(&w, count, (const real *)x + t * d);
        pad_rows(count, (const real *)dphi + t * p, p, w.dphi, w.shape.ld_features);
        feature_maps[map]->forward(&w.shape, count, w.pre, w.phi, w.scratch);
        feature_maps[map]->backward(&w.shape, count, w.dphi, w.pre, w.phi, w.dpre, w.scratch);
        if (w.shape.extension)
            gemm(count, ld_d, w.shape.extension, rows_of(w.dpre + w.shape.u, w.shape.ld), w.omega_t, ld_d, 1, w.dpre,
                 w.dpre, w.shape.ld);
        unpad_rows(count, w.dpre, w.shape.ld, (real *)dx + t * d, d);
    }
}

/* A sequence, padded, on its way through a rule. */
typedef struct {
    real *keys, *query, *dkeys, *dbeta, *dquery, *y, *workspace;
    size_t numbers;
} RuleMemory;

static RuleMemory rule_memory(size_t rule, size_t length, size_t p, size_t n_values, real *memory)
{
    RuleMemory w = {0};
    const size_t ld = fwm_padded(p);
    const size_t sizes[] = {
        length * ld, ld, FWM_TILE * ld, FWM_TILE, ld, n_values, readouts[rule]->workspace(length, n_values, ld, 1)};
    real **const arrays[] = {&w.keys, &w.query, &w.dkeys, &w.dbeta, &w.dquery, &w.y, &w.workspace};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        if (memory)
            *arrays[i] = memory + w.numbers;
        w.numbers += fwm_padded(sizes[i]);
    }
    return w;
}

static size_t rule_scratch(size_t rule, size_t length, size_t p, size_t n_values)
{
    return rule_memory(rule, length, p, n_values, NULL).numbers * sizeof(real);
}

static Sequence begin_rule(const RuleMemory *w, size_t length, size_t p, size_t n_values, const real *keys,
                           const int32_t *values, const real *beta, const real *query)
{
    const size_t ld = fwm_padded(p);
    pad_rows(length, keys, p, w->keys, ld);
    pad_rows(1, query, p, w->query, ld);
    return (Sequence){.length = length,
                      .n_values = n_values,
                      .features = p,
                      .ld = ld,
                      .keys = w->keys,
                      .values = values,
                      .beta = beta,
                      .query = w->query};
}

static void rule_forward(size_t rule, size_t length, size_t p, size_t n_values, const void *keys, const int32_t *values,
                         const void *beta, const void *query, void *y, void *scratch)
{
    const RuleMemory w = rule_memory(rule, length, p, n_values, scratch);
    const Sequence s = begin_rule(&w, length, p, n_values, keys, values, beta, query);
    readouts[rule]->forward(&s, w.workspace, y);
}

static void rule_backward(size_t rule, size_t length, size_t p, size_t n_values, const void *dy, const void *keys,
                          const int32_t *values, const void *beta, const void *query, void *dkeys, void *dbeta,
                          void *dquery, void *scratch)
{
    const RuleMemory w = rule_memory(rule, length, p, n_values, scratch);
    const Sequence s = begin_rule(&w, length, p, n_values, keys, values, beta, query);
    readouts[rule]->forward(&s, w.workspace, w.y);
    const size_t tiles = readouts[rule]->backward_begin(&s, w.workspace, w.y, dy);
    for (size_t tile = 0; tile < tiles; tile++) {
        const TokenRange range = readouts[rule]->backward_tile(&s, w.workspace, tile, w.dkeys, w.dbeta);
        unpad_rows(range.count, w.dkeys, s.ld, (real *)dkeys + range.start * p, p);
        if (beta)
            memcpy((real *)dbeta + range.start, w.dbeta, range.count * sizeof(real));
    }
    readouts[rule]->backward_end(&s, w.workspace, w.dquery);
    memcpy(dquery, w.dquery, p * sizeof(real));
}

static size_t make_omega_scratch(size_t d)
{
    return orthogonal_block_scratch(d) * sizeof(real);
}

static void make_omega(size_t d, size_t m, const float *normals, void *omega, void *scratch)
{
    for (size_t first = 0; first < m; first += d)
        orthogonal_block(d, normals + first * d, fwm_min(d, m - first), (real *)omega + first, m, scratch);
}

static const FwmMemoryInfo *memory_info(size_t row)
{
    return memory_rules[row] ? &memory_rules[row]->info : NULL;
}

static size_t memory_forward_scratch(const FwmMemory *m, int threads)
{
    return memory_rules[m->rule]->forward_scratch(m, threads);
}

static size_t memory_backward_scratch(const FwmMemory *m, int threads)
{
    return memory_rules[m->rule]->backward_scratch(m, threads);
}

static void memory_forward(const FwmMemory *m, int threads, void *scratch)
{
    memory_rules[m->rule]->forward(m, threads, scratch);
}

static void memory_backward(const FwmMemory *m, int threads, void *scratch)
{
    memory_rules[m->rule]->backward(m, threads, scratch);
}

#define fwm_kernels FWM_NAME(kernels)

const FwmKernels fwm_kernels = {
    .variant = FWM_TEXT(FWM_VARIANT),
    .precision = FWM_PRECISION_NAME,
    .real_size = sizeof(real),
    .map_info = map_info,
    .rule_info = rule_info,
    .map_features = map_features,
    .map_has_extension = map_has_extension,
    .map_scratch = map_scratch,
    .map_forward = map_forward,
    .map_backward = map_backward,
    .rule_scratch = rule_scratch,
    .rule_forward = rule_forward,
    .rule_backward = rule_backward,
    .make_omega_scratch = make_omega_scratch,
    .make_omega = make_omega,
    .memory =
        {
            .info = memory_info,
            .forward_scratch = memory_forward_scratch,
            .backward_scratch = memory_backward_scratch,
            .forward = memory_forward,
            .backward = memory_backward,
        },
    .attention =
        {
            .forward_scratch = attention_forward_scratch,
            .backward_scratch = attention_backward_scratch,
            .forward = attention_forward,
            .backward = attention_backward,
        },
    .convolution =
        {
            .backward_scratch = convolution_backward_scratch,
            .forward = convolution_forward,
            .backward = convolution_backward,
        },
    .norm =
        {
            .backward_scratch = norm_backward_scratch,
            .forward = norm_forward,
            .backward = norm_backward,
        },
    .model =
        {
            .activations = model_activations,
            .scratch = model_scratch,
            .loss = model_loss,
            .gradients = model_gradients,
            .step = model_step,
            .read_out = model_read_out,
            .evaluate = model_evaluate,
        },
};
