/* What a call asks of the family's core. */
#ifndef FWM_KERNELS_RULES_FAMILY_SHAPE_H
#define FWM_KERNELS_RULES_FAMILY_SHAPE_H

#include "kernels/rules/tokens.h"

typedef struct {
    FwmGate gate;
    bool erases, reads, normalize; /* reads: it has queries */
    bool rounds;                   /* reads the state rounded to bfloat16, by products in bfloat16 */
    size_t K, ld;                  /* ld: K, padded */
    size_t readers;                /* erases + R: erase keys and queries of a token */
} FamilyShape;

static inline FamilyShape family_shape(const FwmRuleCall *call, bool reads)
{
    const bool erases = rule_erases(call),
               in_bfloat16 = call->q.numbers == FWM_BFLOAT16 && call->k.numbers == FWM_BFLOAT16;
    return (FamilyShape){
        .gate = call->gate,
        .erases = erases,
        .reads = reads,
        .normalize = call->normalize,
        .rounds = FWM_BFLOAT16_PRODUCTS && in_bfloat16 && erases && reads && call->gate != FWM_CHANNEL_GATE,
        .K = call->K,
        .ld = fwm_padded(call->K),
        .readers = (size_t)erases + (reads ? queries_per_state(call) : 0),
    };
}

#endif
