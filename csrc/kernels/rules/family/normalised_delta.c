/* The erase strengths of a normalised delta rule: see normalised_delta.h.
 *
 * Backward, from derase, which the core leaves. Saved by nobody: d and erase are computed again. With dz_t the gradient
 * of z_t through the later d alone (what reads the sums otherwise is the core's business),
 *
 *     dbeta_t += derase_t / d_t,   dd_t = - sum over value heads of derase_t erase_t / d_t
 *     dk_t += dd_t z_{t-1} + dz_t,   dz_{t-1} = dz_t + dd_t k_t,   dinitial_sum += dz before the first token
 *
 * from the last token. Sums of keys are needed in reverse: a first pass keeps those before every L tokens (L about
 * sqrt T), and from each come those of its L tokens.
 *
 * Derived in docs/mathematics/rules.md. */
#include "kernels/rules/family/normalised_delta.h"

#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/rules/head.h"
#include "runtime/threads.h"

typedef struct {
    const FwmRuleCall *call;
    real *erase, *derase; /* (tokens, HV) */
    real *d;              /* (tokens, H) */
    size_t L;             /* tokens of a segment */
    char *sums;           /* of each thread */
    size_t stride;
} EraseStrengths;

typedef struct {
    real *before_segments, *before_tokens; /* (segments, K), (L, K): sums of keys */
    real *dz;                              /* K */
} Sums;

bool normalises_delta(const FwmRuleCall *call)
{
    return call->normalize && rules[call->rule]->info.strength == FWM_BETA;
}

static Sums take_sums(const EraseStrengths *f, Arena *arena)
{
    const size_t K = f->call->K;
    return (Sums){.before_segments = take(arena, (fwm_tiles(longest_sequence(f->call), f->L) + 1) * K),
                  .before_tokens = take(arena, (f->L + 1) * K),
                  .dz = take(arena, K)};
}

static EraseStrengths take_strengths(const FwmRuleCall *call, int threads, Arena *arena)
{
    const size_t tokens = (size_t)call->offsets[call->n_sequences];
    EraseStrengths f = {.call = call, .L = 1};
    while (f.L * f.L < longest_sequence(call))
        f.L++;
    f.erase = take(arena, tokens * call->HV);
    f.derase = take(arena, tokens * call->HV);
    f.d = take(arena, tokens * call->H);
    Arena one = {0};
    take_sums(&f, &one);
    f.stride = one.next;
    f.sums = take_bytes(arena, f.stride * (size_t)threads);
    return f;
}

size_t erase_strengths_scratch(const FwmRuleCall *call, int threads)
{
    Arena arena = {0};
    if (normalises_delta(call))
        take_strengths(call, threads, &arena);
    return arena.next;
}

static real dot_of(size_t n, const real *restrict x, const real *restrict y)
{
    real total = 0;
#pragma omp simd reduction(+ : total)
    for (size_t i = 0; i < n; i++)
        total += x[i] * y[i];
    return total;
}

/* The value heads of a key head: d and erase. */
static void strengths_task(void *context, size_t index, int thread)
{
    const EraseStrengths *f = context;
    const FwmRuleCall *call = f->call;
    const size_t K = call->K, H = call->H, group = call->HV / H, key = index % H;
    const ValueHead h = head_of(call, index / H, key * group);
    Arena arena = arena_of_thread(f->sums, thread, f->stride);
    real *restrict z = take_sums(f, &arena).before_tokens, *restrict k = z + K;
    load_row(K, K, h.initial_sum, z);
    for (size_t t = 0; t < h.T; t++) {
        const size_t row = (size_t)call->offsets[index / H] + t;
        load_numbers(h.k, t, 0, K, K, k);
        const real d = dot_of(K, z, k) + (real)call->eps;
        f->d[row * H + key] = d;
        for (size_t i = 0; i < group; i++)
            f->erase[row * call->HV + key * group + i] = number_of(h.beta, t, i) / d;
        for (size_t i = 0; i < K; i++)
            z[i] += k[i];
    }
}

FwmRuleCall erase_strengths(const FwmRuleCall *call, int threads, void *scratch)
{
    FwmRuleCall with = *call;
    Arena arena = arena_at(scratch);
    if (!normalises_delta(call))
        return with;
    EraseStrengths f = take_strengths(call, threads, &arena);
    fwm_parallel_for(threads, call->n_sequences * call->H, strengths_task, &f);
    with.erase = (FwmTokens){f.erase, call->HV, FWM_REAL};
    with.derase = f.derase;
    return with;
}

/* One token: dbeta, dk, and dz of the sum before it. */
static void token_backward(const EraseStrengths *f, const ValueHead *h, size_t row, size_t t, size_t key,
                           const real *restrict z, real *restrict dz)
{
    const FwmRuleCall *call = f->call;
    const size_t group = call->HV / call->H;
    const real d = f->d[row * call->H + key], *restrict k = token(h->k, t);
    real dd = 0, *restrict dk = token(h->dk, t);
    for (size_t i = 0; i < group; i++) {
        const size_t at = row * call->HV + key * group + i;
        token(h->dbeta, t)[i] += f->derase[at] / d;
        dd -= f->derase[at] * f->erase[at] / d;
    }
    for (size_t i = 0; i < call->K; i++) {
        dk[i] += dd * z[i] + dz[i];
        dz[i] += dd * k[i];
    }
}

static void backward_task(void *context, size_t index, int thread)
{
    const EraseStrengths *f = context;
    const FwmRuleCall *call = f->call;
    const size_t K = call->K, L = f->L, key = index % call->H;
    const size_t first = (size_t)call->offsets[index / call->H];
    const ValueHead h = head_of(call, index / call->H, key * (call->HV / call->H));
    Arena arena = arena_of_thread(f->sums, thread, f->stride);
    const Sums w = take_sums(f, &arena);
    load_row(K, K, h.initial_sum, w.before_segments);
    memset(w.dz, 0, K * sizeof(real));
    for (size_t t = 0; t < h.T; t++) {
        real *z = w.before_segments + t / L * K;
        if (t % L == 0)
            memcpy(z + K, z, K * sizeof(real));
        accumulate(K, token(h.k, t), false, z + K);
    }
    for (size_t segment = fwm_tiles(h.T, L); segment-- > 0;) {
        const size_t t0 = segment * L, n = fwm_min(L, h.T - t0);
        memcpy(w.before_tokens, w.before_segments + segment * K, K * sizeof(real));
        for (size_t t = 0; t + 1 < n; t++) {
            real *z = w.before_tokens + t * K;
            memcpy(z + K, z, K * sizeof(real));
            accumulate(K, token(h.k, t0 + t), false, z + K);
        }
        for (size_t t = n; t-- > 0;)
            token_backward(f, &h, first + t0 + t, t0 + t, key, w.before_tokens + t * K, w.dz);
    }
    if (h.dinitial_sum)
        accumulate(K, w.dz, false, h.dinitial_sum);
}

void erase_strengths_backward(const FwmRuleCall *call, int threads, void *scratch)
{
    Arena arena = arena_at(scratch);
    if (!normalises_delta(call))
        return;
    EraseStrengths f = take_strengths(call, threads, &arena);
    fwm_parallel_for(threads, call->n_sequences * call->H, backward_task, &f);
}
