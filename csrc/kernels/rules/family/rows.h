/* Tokens of one head moved together, from the call's arrays to a place of their own, and gradients back.
 *
 * Rows of one head lie kilobytes apart. Fetched where the work needs them, each waits for memory alone; and stores that
 * miss the caches hold up those behind them. */
#ifndef FWM_KERNELS_RULES_FAMILY_ROWS_H
#define FWM_KERNELS_RULES_FAMILY_ROWS_H

#include "kernels/rules/head.h"

#define numbers_of_token FWM_NAME(numbers_of_token)
#define fetch_rows FWM_NAME(fetch_rows)
#define bring_rows FWM_NAME(bring_rows)

size_t numbers_of_token(const FwmRuleCall *m); /* room for a token's rows */

/* The first tokens of a head, in rows: what the state needs (k, v, g, ..), and, for a backward, the rest and room for
 * gradients. */
Head fetch_rows(const Head *there, size_t tokens, bool backward, real *rows);

/* The gradients of a head that fetch_rows returned. Value heads that share a key or a query add to its gradient in
 * order. */
void bring_rows(const Head *here, size_t tokens, const Head *there);

#endif
