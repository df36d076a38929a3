/* Rules: many heads, an output for every token, states in and out.
 *
 * A row of the table (table.c) is a rule: its names, the inputs it takes, and its forward and backward. All rules but
 * fast_weight_memory are one family with one core:
 *
 *     S = diag(exp g) S;   S += k (u - S^T e)^T;   o = scale S^T q          S (K x V), for each value head
 *
 * where k is the write key, e the erase key and u the written value:
 *
 *     sums                  e = 0         u = v
 *     delta rules           e = beta k    u = beta v          normalised: e = beta / (z . k + eps) k
 *     Gated DeltaNet 2      e = b * k     u = w * v
 *
 * The gate g is none, a scalar or a vector over K. */
#ifndef FWM_KERNELS_RULES_RULE_H
#define FWM_KERNELS_RULES_RULE_H

#include "api/kernels.h"
#include "kernels/base/real.h"

typedef struct {
    FwmRuleInfo info;
    FwmPass forward, backward; /* of FwmRuleCall */
} Rule;

#define rules FWM_NAME(rules)
#define info_of_rule FWM_NAME(info_of_rule)
#define rule_forward_scratch FWM_NAME(rule_forward_scratch)
#define rule_backward_scratch FWM_NAME(rule_backward_scratch)
#define rule_forward FWM_NAME(rule_forward)
#define rule_backward FWM_NAME(rule_backward)

extern const Rule *const rules[]; /* NULL after the last */

const FwmRuleInfo *info_of_rule(size_t row);

/* The passes of the operation; the call is an FwmRuleCall. */
size_t rule_forward_scratch(const void *rule_call, int threads);
size_t rule_backward_scratch(const void *rule_call, int threads);
void rule_forward(const void *rule_call, int threads, void *scratch);
void rule_backward(const void *rule_call, int threads, void *scratch);

/* How many query heads read one state, and which: query head r of value head hv is first_query_head(call, hv) + r. */
static inline size_t queries_per_state(const FwmRuleCall *call)
{
    return call->HQ > call->HV ? call->HQ / call->HV : 1;
}

static inline size_t first_query_head(const FwmRuleCall *call, size_t hv)
{
    return call->HQ > call->HV ? hv * (call->HQ / call->HV) : hv / (call->HV / call->HQ);
}

static inline size_t key_head(const FwmRuleCall *call, size_t hv)
{
    return hv / (call->HV / call->H);
}

static inline size_t sequence_length(const FwmRuleCall *call, size_t sequence)
{
    return (size_t)(call->offsets[sequence + 1] - call->offsets[sequence]);
}

static inline size_t longest_sequence(const FwmRuleCall *call)
{
    size_t longest = 0;
    for (size_t i = 0; i < call->n_sequences; i++)
        longest = sequence_length(call, i) > longest ? sequence_length(call, i) : longest;
    return longest;
}

#endif
