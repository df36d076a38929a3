/* The table of the general memories: the Python functions and the tests follow from it. */
#include "kernels/memory/family.h"

#define FAMILY                                                                                                         \
    .forward_scratch = family_forward_scratch, .backward_scratch = family_backward_scratch, .forward = family_forward, \
    .backward = family_backward

static const MemoryRule linear_attention = {
    FAMILY, .info = {.function = "linear_attention", .normalizes = true, .summary = "S += k v^T"}};
static const MemoryRule gated_linear_attention = {FAMILY, .info = {.function = "gated_linear_attention",
                                                                   .scalar_gate = true,
                                                                   .channel_gate = true,
                                                                   .summary = "S = diag(exp g) S + k v^T"}};
static const MemoryRule delta_rule = {FAMILY, .info = {.function = "delta_rule",
                                                       .strength = FWM_BETA,
                                                       .has_qk_norm = true,
                                                       .summary = "S += beta k (v - S^T k)^T"}};
static const MemoryRule gated_delta_rule = {FAMILY, .info = {.function = "gated_delta_rule",
                                                             .scalar_gate = true,
                                                             .strength = FWM_BETA,
                                                             .has_qk_norm = true,
                                                             .summary = "S = exp(g) S; S += beta k (v - S^T k)^T"}};
static const MemoryRule kimi_delta_rule = {FAMILY, .info = {.function = "kimi_delta_rule",
                                                            .channel_gate = true,
                                                            .strength = FWM_BETA,
                                                            .has_qk_norm = true,
                                                            .summary = "S = diag(exp g) S; S += beta k (v - S^T k)^T"}};
static const MemoryRule gated_delta_rule_2 = {FAMILY,
                                              .info = {.function = "gated_delta_rule_2",
                                                       .channel_gate = true,
                                                       .strength = FWM_ERASE_AND_WRITE,
                                                       .has_qk_norm = true,
                                                       .summary = "S = diag(exp g) S; S += k (w * v - S^T (b * k))^T"}};

extern const MemoryRule FWM_NAME(memory_fast_weight_memory);

const MemoryRule *const memory_rules[] = {&linear_attention,
                                          &gated_linear_attention,
                                          &delta_rule,
                                          &gated_delta_rule,
                                          &kimi_delta_rule,
                                          &gated_delta_rule_2,
                                          &FWM_NAME(memory_fast_weight_memory),
                                          NULL};
