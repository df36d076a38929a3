/* Tokens of one head, gathered and scattered: see rows.h. See docs/mathematics/rules.md. */
#include "kernels/rules/family/rows.h"

#include <stddef.h>

typedef enum { INPUT, GRADIENT } RowUse;

typedef struct {
    size_t member; /* offset in ValueHead, of a Tokens */
    RowUse use;
    enum { ONE, KEY, VALUE, QUERIES, OUTPUTS, GATE } numbers; /* of a token */
    enum { OF_VALUE_HEAD, OF_QUERY_HEAD, OF_KEY_HEAD } whose;
} RowArray;

static const RowArray arrays[] = {
    {offsetof(ValueHead, v), INPUT, VALUE},
    {offsetof(ValueHead, g), INPUT, GATE},
    {offsetof(ValueHead, beta), INPUT, ONE},
    {offsetof(ValueHead, erase), INPUT, ONE},
    {offsetof(ValueHead, b), INPUT, KEY},
    {offsetof(ValueHead, w), INPUT, VALUE},
    {offsetof(ValueHead, dout), INPUT, OUTPUTS},
    {offsetof(ValueHead, dk), GRADIENT, KEY, OF_KEY_HEAD},
    {offsetof(ValueHead, dv), GRADIENT, VALUE},
    {offsetof(ValueHead, dg), GRADIENT, GATE},
    {offsetof(ValueHead, dbeta), GRADIENT, ONE},
    {offsetof(ValueHead, db), GRADIENT, KEY},
    {offsetof(ValueHead, dw), GRADIENT, VALUE},
    {offsetof(ValueHead, derase), GRADIENT, ONE},
    {offsetof(ValueHead, dq), GRADIENT, QUERIES, OF_QUERY_HEAD},
};
enum { ARRAYS = sizeof arrays / sizeof arrays[0] };

static size_t numbers_of(const FwmRuleCall *call, const RowArray *array)
{
    const size_t R = queries_per_state(call);
    const size_t numbers[] = {[ONE] = 1,
                              [KEY] = call->K,
                              [VALUE] = call->V,
                              [QUERIES] = R * call->K,
                              [OUTPUTS] = R * call->V,
                              [GATE] = call->gate == FWM_CHANNEL_GATE ? call->K : 1};
    return numbers[array->numbers];
}

static Tokens *tokens_in(ValueHead *h, const RowArray *array)
{
    return (Tokens *)((char *)h + array->member);
}

size_t numbers_of_token(const FwmRuleCall *call)
{
    size_t all = 0;
    for (size_t i = 0; i < ARRAYS; i++)
        all += numbers_of(call, &arrays[i]);
    return all;
}

/* Whether all value heads of a key head have it. */
static bool is_shared(const FwmRuleCall *call, const RowArray *array)
{
    return array->whose == OF_KEY_HEAD || (array->whose == OF_QUERY_HEAD && call->HQ == call->H);
}

/* Whether what is there already counts: it is a sum over value heads, and this is not the first. */
static bool goes_on(const ValueHead *head, const RowArray *array)
{
    return (array->whose == OF_KEY_HEAD && !head->first_of_key) ||
           (array->whose == OF_QUERY_HEAD && !head->first_of_query);
}

ValueHead gather_rows(const ValueHead *head, size_t tokens, bool shared, real *rows)
{
    ValueHead gathered = *head;
    for (size_t i = 0; i < ARRAYS; i++) {
        const size_t numbers = numbers_of(gathered.call, &arrays[i]);
        Tokens *x = tokens_in(&gathered, &arrays[i]);
        if (!x->data)
            continue;
        const Tokens scattered = *x;
        *x = (Tokens){rows, numbers, FWM_REAL};
        rows += tokens * numbers;
        const bool is_there = shared && is_shared(gathered.call, &arrays[i]);
        if (!is_there && (arrays[i].use == INPUT || goes_on(head, &arrays[i])))
            copy_rows(tokens, 0, numbers, scattered, *x);
    }
    return gathered;
}

void scatter_rows(const ValueHead *gathered, size_t tokens, bool last, const ValueHead *head)
{
    ValueHead from = *gathered, to = *head;
    for (size_t i = 0; i < ARRAYS; i++) {
        const Tokens *x = tokens_in(&from, &arrays[i]), *scattered = tokens_in(&to, &arrays[i]);
        if (arrays[i].use == GRADIENT && scattered->data && (last || !is_shared(to.call, &arrays[i])))
            copy_rows(tokens, 0, numbers_of(to.call, &arrays[i]), *x, *scattered);
    }
}
