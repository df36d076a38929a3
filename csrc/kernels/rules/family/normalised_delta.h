/* Attention normalisation of the delta rule: what a key erases is divided by the weight of what was written before it.
 *
 *     d_t = z_{t-1} . k_t + eps,   erase_t = beta_t / d_t,   z_t = z_{t-1} + k_t
 *     S += k_t (beta_t v_t - erase_t S^T k_t)^T,   o = S^T q / (z_t . q + eps)
 *
 * Schlag, Irie, Schmidhuber 2021, section 4.2. Erase and write strength
 * differ by a number for each token and value head: with it the core of the family does all the rest. */
#ifndef FWM_KERNELS_RULES_FAMILY_NORMALISED_DELTA_H
#define FWM_KERNELS_RULES_FAMILY_NORMALISED_DELTA_H

#include "kernels/rules/rule.h"

#define normalises_delta FWM_NAME(normalises_delta)
#define erase_strengths_scratch FWM_NAME(erase_strengths_scratch)
#define erase_strengths FWM_NAME(erase_strengths)
#define erase_strengths_backward FWM_NAME(erase_strengths_backward)

bool normalises_delta(const FwmRuleCall *);

/* Bytes for either direction; 0 where the call has no such strengths. */
size_t erase_strengths_scratch(const FwmRuleCall *, int threads);

/* The call with its erase strengths and, in a backward, room for their gradient, both in scratch. */
FwmRuleCall erase_strengths(const FwmRuleCall *, int threads, void *scratch);

/* After the core's backward of the call that erase_strengths returned: adds to dbeta, dk and dinitial_sum. */
void erase_strengths_backward(const FwmRuleCall *, int threads, void *scratch);

#endif
