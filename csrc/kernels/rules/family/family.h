/* The core of the family: all rules but fast_weight_memory. */
#ifndef FWM_KERNELS_RULES_FAMILY_FAMILY_H
#define FWM_KERNELS_RULES_FAMILY_FAMILY_H

#include "kernels/rules/rule.h"

#define family_forward_scratch FWM_NAME(family_forward_scratch)
#define family_backward_scratch FWM_NAME(family_backward_scratch)
#define family_forward FWM_NAME(family_forward)
#define family_backward FWM_NAME(family_backward)

size_t family_forward_scratch(const void *rule_call, int threads);
size_t family_backward_scratch(const void *rule_call, int threads);
void family_forward(const void *rule_call, int threads, void *scratch);
void family_backward(const void *rule_call, int threads, void *scratch);

#endif
