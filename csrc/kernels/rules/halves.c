/* Tokens and gradients between 16 bits and the copy's number type: see halves.h. */
#include "kernels/rules/halves.h"

#include "kernels/base/half.h"
#include "runtime/threads.h"

enum { BLOCK = 64 }; /* tokens of a task */

typedef struct {
    size_t tokens, gradient; /* offsets in FwmRuleCall; gradient 0: it has none */
    enum { KEYS, QUERIES, VALUES, ROWS, ONES, GATES, OUTPUTS } numbers; /* of a token */
} HalfArray;

#define ARRAY(name, numbers) {offsetof(FwmRuleCall, name), offsetof(FwmRuleCall, d##name), numbers}

static const HalfArray arrays[] = {
    ARRAY(q, QUERIES), ARRAY(k, KEYS), ARRAY(v, VALUES), ARRAY(g, GATES),
    ARRAY(beta, ONES), ARRAY(b, ROWS), ARRAY(w, VALUES), {offsetof(FwmRuleCall, dout), 0, OUTPUTS},
};
enum { ARRAYS = sizeof arrays / sizeof arrays[0] };

typedef struct {
    const FwmRuleCall *halves, *widened;
    bool back; /* gradients, back to halves */
} Conversion;

static size_t numbers_of(const FwmRuleCall *c, const HalfArray *array)
{
    const size_t numbers[] = {[KEYS] = c->H * c->K,
                              [QUERIES] = c->HQ * c->K,
                              [VALUES] = c->HV * c->V,
                              [ROWS] = c->HV * c->K,
                              [ONES] = c->HV,
                              [GATES] = c->gate == FWM_CHANNEL_GATE ? c->HV * c->K : c->HV,
                              [OUTPUTS] = (c->HQ > c->HV ? c->HQ : c->HV) * c->V};
    return numbers[array->numbers];
}

static const FwmTokens *tokens_of(const FwmRuleCall *call, const HalfArray *array)
{
    return (const FwmTokens *)((const char *)call + array->tokens);
}

static void **gradient_of(const FwmRuleCall *call, const HalfArray *array)
{
    return (void **)((char *)call + array->gradient);
}

static bool is_half(const FwmRuleCall *call, const HalfArray *array)
{
    return tokens_of(call, array)->data && tokens_of(call, array)->numbers != FWM_REAL;
}

static size_t tokens_of_call(const FwmRuleCall *call)
{
    return (size_t)call->offsets[call->n_sequences];
}

FwmRuleCall take_widened(const FwmRuleCall *call, Arena *arena)
{
    FwmRuleCall widened = *call;
    for (size_t i = 0; i < ARRAYS; i++) {
        if (!is_half(call, &arrays[i]))
            continue;
        const size_t numbers = numbers_of(call, &arrays[i]), all = tokens_of_call(call) * numbers;
        *(FwmTokens *)tokens_of(&widened, &arrays[i]) = (FwmTokens){take(arena, all), numbers, FWM_REAL};
        if (arrays[i].gradient)
            *gradient_of(&widened, &arrays[i]) = take(arena, all);
    }
    return widened;
}

static void convert_token(const Conversion *c, size_t t)
{
    for (size_t i = 0; i < ARRAYS; i++) {
        const FwmTokens *half = tokens_of(c->halves, &arrays[i]), *real_ones = tokens_of(c->widened, &arrays[i]);
        const size_t numbers = numbers_of(c->halves, &arrays[i]);
        if (!is_half(c->halves, &arrays[i]) || (c->back && !arrays[i].gradient))
            continue;
        if (!c->back)
            read_numbers(half->numbers, numbers, (const uint16_t *)half->data + t * half->stride,
                         (real *)real_ones->data + t * numbers);
        else
            write_numbers(half->numbers, numbers, (const real *)*gradient_of(c->widened, &arrays[i]) + t * numbers,
                          (uint16_t *)*gradient_of(c->halves, &arrays[i]) + t * numbers);
    }
}

static void convert_block(void *context, size_t block, int thread)
{
    const Conversion *c = context;
    const size_t tokens = tokens_of_call(c->halves);
    (void)thread;
    for (size_t t = block * BLOCK; t < fwm_min(tokens, (block + 1) * BLOCK); t++)
        convert_token(c, t);
}

static void convert(Conversion c, int threads)
{
    bool any = false;
    for (size_t i = 0; i < ARRAYS; i++)
        any |= is_half(c.halves, &arrays[i]);
    if (any)
        fwm_parallel_for(threads, fwm_tiles(tokens_of_call(c.halves), BLOCK), convert_block, &c);
}

void widen_tokens(const FwmRuleCall *call, const FwmRuleCall *widened, int threads)
{
    convert((Conversion){call, widened, false}, threads);
}

void narrow_gradients(const FwmRuleCall *widened, const FwmRuleCall *call, int threads)
{
    convert((Conversion){call, widened, true}, threads);
}
