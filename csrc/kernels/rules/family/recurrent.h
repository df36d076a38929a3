/* The plain recurrence of the family: the reference, and the form for sequences of one token. */
#ifndef FWM_KERNELS_RULES_FAMILY_RECURRENT_H
#define FWM_KERNELS_RULES_FAMILY_RECURRENT_H

#include "kernels/rules/rule.h"

#define recurrent_serves FWM_NAME(recurrent_serves)
#define recurrent_forward_scratch FWM_NAME(recurrent_forward_scratch)
#define recurrent_backward_scratch FWM_NAME(recurrent_backward_scratch)
#define recurrent_forward FWM_NAME(recurrent_forward)
#define one_token_scratch FWM_NAME(one_token_scratch)
#define one_token_forward FWM_NAME(one_token_forward)
#define one_token_backward FWM_NAME(one_token_backward)
#define recurrent_backward FWM_NAME(recurrent_backward)

/* Whether the plain recurrence computes the call: it says so, or no sequence has more than one token. */
bool recurrent_serves(const FwmRuleCall *);

size_t recurrent_forward_scratch(const FwmRuleCall *, int threads);
size_t recurrent_backward_scratch(const FwmRuleCall *, int threads);
void recurrent_forward(const FwmRuleCall *, int threads, void *scratch);
void recurrent_backward(const FwmRuleCall *, int threads, void *scratch);

/* For a sequence of one token, packed among longer ones: a value head (forward), or the value heads of a key head
 * (backward), on the calling thread, with the bits that the sequence has alone. */
size_t one_token_scratch(const FwmRuleCall *);
void one_token_forward(const FwmRuleCall *, size_t sequence, size_t hv, void *scratch);
void one_token_backward(const FwmRuleCall *, size_t sequence, size_t key_head, void *scratch);

#endif
