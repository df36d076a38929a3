/* Rules: many heads, an output for every token, states in and out.
 *
 * A row of the table (table.c) is a rule: what it is called, what it takes, and the core that computes it. All rules
 * but fast_weight_memory are one family with one core:
 *
 *     S = diag(exp g) S;   S += k (u - S^T e)^T;   o = scale S^T q          S (K x V), for each value head
 *
 * where k writes, e erases and u is what is written: a sum has u = v and e = 0, the delta rule u = beta v and e = beta
 * k, Gated DeltaNet 2 u = w * v and e = b * k. The gate g is none, a scalar or a vector over K. */
#ifndef FWM_KERNELS_RULES_RULE_H
#define FWM_KERNELS_RULES_RULE_H

#include "kernels/base/real.h"
#include "api/kernels.h"

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

extern const Rule *const rules[]; /* NULL behind the last */

const FwmRuleInfo *info_of_rule(size_t row);

/* The passes of the operation; the call is an FwmRuleCall. */
size_t rule_forward_scratch(const void *call, int threads);
size_t rule_backward_scratch(const void *call, int threads);
void rule_forward(const void *call, int threads, void *scratch);
void rule_backward(const void *call, int threads, void *scratch);

/* Query heads that read one state, and which: query head r of value head hv is first_query_head(m, hv) + r. */
static inline size_t queries_per_state(const FwmRuleCall *m)
{
    return m->HQ > m->HV ? m->HQ / m->HV : 1;
}

static inline size_t first_query_head(const FwmRuleCall *m, size_t hv)
{
    return m->HQ > m->HV ? hv * (m->HQ / m->HV) : hv / (m->HV / m->HQ);
}

static inline size_t key_head(const FwmRuleCall *m, size_t hv)
{
    return hv / (m->HV / m->H);
}

static inline size_t sequence_length(const FwmRuleCall *m, size_t sequence)
{
    return (size_t)(m->offsets[sequence + 1] - m->offsets[sequence]);
}

static inline size_t longest_sequence(const FwmRuleCall *m)
{
    size_t longest = 0;
    for (size_t i = 0; i < m->n_sequences; i++)
        longest = sequence_length(m, i) > longest ? sequence_length(m, i) : longest;
    return longest;
}

#endif
