/* The operation of all rules: a call names its row of the table. */
#include "kernels/rules/rule.h"

static const Rule *rule_of(const void *rule_call)
{
    return rules[((const FwmRuleCall *)rule_call)->rule];
}

size_t rule_forward_scratch(const void *rule_call, int threads)
{
    return rule_of(rule_call)->forward.scratch(rule_call, threads);
}

size_t rule_backward_scratch(const void *rule_call, int threads)
{
    return rule_of(rule_call)->backward.scratch(rule_call, threads);
}

void rule_forward(const void *rule_call, int threads, void *scratch)
{
    rule_of(rule_call)->forward.run(rule_call, threads, scratch);
}

void rule_backward(const void *rule_call, int threads, void *scratch)
{
    rule_of(rule_call)->backward.run(rule_call, threads, scratch);
}
