/* The table of rules: the Python functions and the tests follow from it. */
#include "kernels/rules/rule.h"

#include "kernels/rules/family/family.h"
#include "kernels/rules/fast_weight_memory/fast_weight_memory.h"

#define FAMILY                                                                                                         \
    .forward = {family_forward_scratch, family_forward}, .backward = {family_backward_scratch, family_backward}

static const Rule linear_attention = {
    FAMILY, .info = {.name = "sum", .function = "linear_attention", .normalizes = true, .summary = "S += k v^T"}};
static const Rule gated_linear_attention = {FAMILY, .info = {.name = "gated_sum",
                                                             .function = "gated_linear_attention",
                                                             .scalar_gate = true,
                                                             .channel_gate = true,
                                                             .summary = "S = diag(exp g) S + k v^T"}};
static const Rule delta_rule = {FAMILY, .info = {.name = "delta",
                                                 .function = "delta_rule",
                                                 .strength = FWM_BETA,
                                                 .normalizes = true,
                                                 .has_qk_norm = true,
                                                 .summary = "S += beta k (v - S^T k)^T"}};
static const Rule gated_delta_rule = {FAMILY, .info = {.name = "gated_delta",
                                                       .function = "gated_delta_rule",
                                                       .scalar_gate = true,
                                                       .strength = FWM_BETA,
                                                       .has_qk_norm = true,
                                                       .summary = "S = exp(g) S; S += beta k (v - S^T k)^T"}};
static const Rule kimi_delta_rule = {FAMILY, .info = {.name = "kimi_delta",
                                                      .function = "kimi_delta_rule",
                                                      .channel_gate = true,
                                                      .strength = FWM_BETA,
                                                      .has_qk_norm = true,
                                                      .summary = "S = diag(exp g) S; S += beta k (v - S^T k)^T"}};
static const Rule gated_delta_rule_2 = {FAMILY,
                                        .info = {.name = "gated_delta_2",
                                                 .function = "gated_delta_rule_2",
                                                 .channel_gate = true,
                                                 .strength = FWM_ERASE_AND_WRITE,
                                                 .has_qk_norm = true,
                                                 .summary = "S = diag(exp g) S; S += k (w * v - S^T (b * k))^T"}};

const Rule *const rules[] = {
    &linear_attention,   &gated_linear_attention,  &delta_rule, &gated_delta_rule, &kimi_delta_rule,
    &gated_delta_rule_2, &fast_weight_memory_rule, NULL};

const FwmRuleInfo *info_of_rule(size_t row)
{
    return rules[row] ? &rules[row]->info : NULL;
}
