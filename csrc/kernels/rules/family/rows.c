/* Tokens of one head moved together: see rows.h. */
#include "kernels/rules/family/rows.h"

#include <stddef.h>

typedef enum { WRITING, READING, GRADIENT } Use;

typedef struct {
    size_t member; /* of a Head: Tokens */
    Use use;
    enum { ONE, KEY, VALUE, QUERIES, OUTPUTS, GATE } numbers; /* of a token */
} Array;

static const Array arrays[] = {
    {offsetof(Head, k), WRITING, KEY},       {offsetof(Head, v), WRITING, VALUE},
    {offsetof(Head, g), WRITING, GATE},      {offsetof(Head, beta), WRITING, ONE},
    {offsetof(Head, b), WRITING, KEY},       {offsetof(Head, w), WRITING, VALUE},
    {offsetof(Head, q), READING, QUERIES},   {offsetof(Head, dout), READING, OUTPUTS},
    {offsetof(Head, dk), GRADIENT, KEY},     {offsetof(Head, dv), GRADIENT, VALUE},
    {offsetof(Head, dg), GRADIENT, GATE},    {offsetof(Head, dbeta), GRADIENT, ONE},
    {offsetof(Head, db), GRADIENT, KEY},     {offsetof(Head, dw), GRADIENT, VALUE},
    {offsetof(Head, dq), GRADIENT, QUERIES},
};
enum { ARRAYS = sizeof arrays / sizeof arrays[0] };

static size_t numbers_of(const FwmRuleCall *m, const Array *array)
{
    const size_t R = queries_per_state(m);
    const size_t numbers[] = {[ONE] = 1,
                              [KEY] = m->K,
                              [VALUE] = m->V,
                              [QUERIES] = R * m->K,
                              [OUTPUTS] = R * m->V,
                              [GATE] = m->gate == FWM_CHANNEL_GATE ? m->K : 1};
    return numbers[array->numbers];
}

static Tokens *tokens_in(Head *h, const Array *array)
{
    return (Tokens *)((char *)h + array->member);
}

size_t numbers_of_token(const FwmRuleCall *m)
{
    size_t all = 0;
    for (size_t i = 0; i < ARRAYS; i++)
        all += numbers_of(m, &arrays[i]);
    return all;
}

Head fetch_rows(const Head *there, size_t tokens, bool backward, real *rows)
{
    Head here = *there;
    for (size_t i = 0; i < ARRAYS; i++) {
        const size_t numbers = numbers_of(here.m, &arrays[i]);
        Tokens *x = tokens_in(&here, &arrays[i]);
        if (!x->data || (arrays[i].use != WRITING && !backward))
            continue;
        const Tokens far = *x;
        *x = (Tokens){rows, numbers};
        rows += tokens * numbers;
        if (arrays[i].use != GRADIENT)
            copy_rows(tokens, 0, numbers, far, *x);
    }
    here.first_of_key = here.first_of_query = true;
    return here;
}

void bring_rows(const Head *here, size_t tokens, const Head *there)
{
    Head from = *here, to = *there;
    for (size_t i = 0; i < ARRAYS; i++) {
        const Tokens *x = tokens_in(&from, &arrays[i]), *far = tokens_in(&to, &arrays[i]);
        if (arrays[i].use != GRADIENT || !far->data)
            continue;
        const bool first = far == &to.dk ? to.first_of_key : far == &to.dq ? to.first_of_query : true;
        for (size_t t = 0; t < tokens; t++)
            give(numbers_of(to.m, &arrays[i]), token(*x, t), first, token(*far, t));
    }
}
