/* The operation of all rules: a call names its row of the table. */
#include "kernels/rules/rule.h"

static const Rule *rule_of(const void *call)
{
    return rules[((const FwmRuleCall *)call)->rule];
}

size_t rule_forward_scratch(const void *call, int threads)
{
    return rule_of(call)->forward.scratch(call, threads);
}

size_t rule_backward_scratch(const void *call, int threads)
{
    return rule_of(call)->backward.scratch(call, threads);
}

void rule_forward(const void *call, int threads, void *scratch)
{
    rule_of(call)->forward.run(call, threads, scratch);
}

void rule_backward(const void *call, int threads, void *scratch)
{
    rule_of(call)->backward.run(call, threads, scratch);
}
