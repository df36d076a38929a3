/* The operation of all rules: a call names its row of the table. */
#include "kernels/rules/rule.h"

#include "kernels/rules/halves.h"

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
    Arena arena = {0};
    const FwmRuleCall widened = take_widened(rule_call, &arena);
    return arena.next + rule_of(rule_call)->backward.scratch(&widened, threads);
}

void rule_forward(const void *rule_call, int threads, void *scratch)
{
    rule_of(rule_call)->forward.run(rule_call, threads, scratch);
}

void rule_backward(const void *rule_call, int threads, void *scratch)
{
    Arena arena = arena_at(scratch);
    const FwmRuleCall widened = take_widened(rule_call, &arena);
    widen_tokens(rule_call, &widened, threads);
    rule_of(rule_call)->backward.run(&widened, threads, (void *)arena.next);
    narrow_gradients(&widened, rule_call, threads);
}
