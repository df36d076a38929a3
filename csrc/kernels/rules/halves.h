/* Backward of calls whose tokens are stored in 16 bits: they are converted before, and their gradients after. A forward
 * needs none of this: it converts what it loads and stores. */
#ifndef FWM_KERNELS_RULES_HALVES_H
#define FWM_KERNELS_RULES_HALVES_H

#include "kernels/base/arena.h"
#include "kernels/rules/rule.h"

#define take_widened FWM_NAME(take_widened)
#define widen_tokens FWM_NAME(widen_tokens)
#define narrow_gradients FWM_NAME(narrow_gradients)

/* The call with its tokens, and room for their gradients, in the copy's number type: where they lie, or in the arena.
 */
FwmRuleCall take_widened(const FwmRuleCall *call, Arena *arena);

/* Converts the tokens of the call into those of the widened one, and its gradients back. */
void widen_tokens(const FwmRuleCall *call, const FwmRuleCall *widened, int threads);
void narrow_gradients(const FwmRuleCall *widened, const FwmRuleCall *call, int threads);

#endif
