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

/* If the call asks for it, or no sequence has more than a token. */
bool recurrent_serves(const FwmRuleCall *);

size_t recurrent_forward_scratch(const FwmRuleCall *, int threads);
size_t recurrent_backward_scratch(const FwmRuleCall *, int threads);
void recurrent_forward(const FwmRuleCall *, int threads, void *scratch);
void recurrent_backward(const FwmRuleCall *, int threads, void *scratch);

/* Packed among longer sequences: a value head, and the value heads of a key head, of a sequence of one token, on the
 * thread that calls, with the bits that the sequence has by itself. */
size_t one_token_scratch(const FwmRuleCall *);
void one_token_forward(const FwmRuleCall *, size_t sequence, size_t hv, void *scratch);
void one_token_backward(const FwmRuleCall *, size_t sequence, size_t key_head, void *scratch);

#endif
