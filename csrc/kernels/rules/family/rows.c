/* Tokens of one head, gathered and scattered: see rows.h. See docs/mathematics/rules.md. */
#include "kernels/rules/family/rows.h"

#include <stddef.h>

typedef enum { INPUT, GRADIENT } RowUse;

typedef struct {
    size_t member; /* offset in ValueHead, of a Tokens */
    RowUse use;
    enum { ONE, KEY, VALUE, QUERIES, OUTPUTS, GATE } numbers; /* of a token */
} RowArray;

static const RowArray arrays[] = {
    {offsetof(ValueHead, k), INPUT, KEY},         {offsetof(ValueHead, v), INPUT, VALUE},
    {offsetof(ValueHead, g), INPUT, GATE},        {offsetof(ValueHead, beta), INPUT, ONE},
    {offsetof(ValueHead, erase), INPUT, ONE},     {offsetof(ValueHead, b), INPUT, KEY},
    {offsetof(ValueHead, w), INPUT, VALUE},       {offsetof(ValueHead, q), INPUT, QUERIES},
    {offsetof(ValueHead, dout), INPUT, OUTPUTS},  {offsetof(ValueHead, dk), GRADIENT, KEY},
    {offsetof(ValueHead, dv), GRADIENT, VALUE},   {offsetof(ValueHead, dg), GRADIENT, GATE},
    {offsetof(ValueHead, dbeta), GRADIENT, ONE},  {offsetof(ValueHead, db), GRADIENT, KEY},
    {offsetof(ValueHead, dw), GRADIENT, VALUE},   {offsetof(ValueHead, derase), GRADIENT, ONE},
    {offsetof(ValueHead, dq), GRADIENT, QUERIES},
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

ValueHead gather_rows(const ValueHead *head, size_t tokens, real *rows)
{
    ValueHead gathered = *head;
    for (size_t i = 0; i < ARRAYS; i++) {
        const size_t numbers = numbers_of(gathered.call, &arrays[i]);
        Tokens *x = tokens_in(&gathered, &arrays[i]);
        if (!x->data)
            continue;
        const Tokens scattered = *x;
        *x = (Tokens){rows, numbers};
        rows += tokens * numbers;
        if (arrays[i].use != GRADIENT)
            copy_rows(tokens, 0, numbers, scattered, *x);
    }
    gathered.first_of_key = gathered.first_of_query = true;
    return gathered;
}

void scatter_rows(const ValueHead *gathered, size_t tokens, const ValueHead *head)
{
    ValueHead from = *gathered, to = *head;
    for (size_t i = 0; i < ARRAYS; i++) {
        const Tokens *x = tokens_in(&from, &arrays[i]), *scattered = tokens_in(&to, &arrays[i]);
        if (arrays[i].use != GRADIENT || !scattered->data)
            continue;
        const bool first = scattered == &to.dk ? to.first_of_key : scattered == &to.dq ? to.first_of_query : true;
        for (size_t t = 0; t < tokens; t++)
            accumulate(numbers_of(to.call, &arrays[i]), token(*x, t), first, token(*scattered, t));
    }
}
