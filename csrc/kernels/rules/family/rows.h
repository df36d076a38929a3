/* Gathers tokens of one head from the call's arrays into packed rows, and scatters gradients back.
 *
 * The rows of one head lie kilobytes apart. Loaded where the work needs them, each is a cache miss that is waited for
 * alone; and stores that miss the caches hold up those after them. */
#ifndef FWM_KERNELS_RULES_FAMILY_ROWS_H
#define FWM_KERNELS_RULES_FAMILY_ROWS_H

#include "kernels/rules/head.h"

#define numbers_of_token FWM_NAME(numbers_of_token)
#define gather_rows FWM_NAME(gather_rows)
#define scatter_rows FWM_NAME(scatter_rows)

size_t numbers_of_token(const FwmRuleCall *call); /* of the rows of one token */

/* Gathers the first tokens of a head into rows, inputs and gradients to which other value heads have added. Returns the
 * head with its tokens there. With `shared`, the rows hold what they held for another value head of the same key head,
 * and keys, queries of the key head, and their gradients, stay as they are. */
ValueHead gather_rows(const ValueHead *head, size_t tokens, bool shared, real *rows);

/* Scatters the gradients of a head that gather_rows returned; what it shares with the next, which will add to it, only
 * if it is the last. */
void scatter_rows(const ValueHead *gathered, size_t tokens, bool last, const ValueHead *head);

#endif
