/* Linear attention without a causal mask, forward: noncausal.h has the equations. A task is a key head of a sequence:
 * tile by tile of keys, S += K^T V; then, tile by tile of queries, O = Q S. Two products of 2 K V operations a token,
 * the least there is.
 *
 * See docs/mathematics/noncausal.md. */
#include "kernels/noncausal/noncausal.h"

#include "kernels/base/gemm.h"
#include "runtime/threads.h"

typedef struct {
    real *S, *z;      /* K x ld, K */
    real *tile, *den; /* TOKEN_TILE x ld, TOKEN_TILE */
} NoncausalForwardScratch;

typedef struct {
    const FwmNoncausalCall *call;
    char *scratch;
    size_t stride;
} NoncausalForward;

void sum_writes(const NoncausalHead *head, size_t hv, size_t ld, real *S, real *tile)
{
    const FwmNoncausalCall *c = head->call;
    const real *initial = part_of(c->initial_state, head->b * c->HV + hv, c->K * c->V);
    for (size_t i = 0; i < c->K; i++)
        load_row(c->V, ld, initial ? initial + i * c->V : NULL, S + i * ld);
    for (size_t t = 0; t < head->length; t += TOKEN_TILE) {
        const size_t n = fwm_min(TOKEN_TILE, head->length - t);
        gather_tile(n, c->V, numbers_at(c->v, head->b, c->N, t, hv, c->V), c->v.stride, ld, tile);
        gemm(c->K, ld, n, transposed(numbers_at(c->k, head->b, c->N, t, head->h, c->K), c->k.stride), tile, ld, 1, S, S,
             ld);
    }
}

void sum_of_keys(const NoncausalHead *head, real *restrict z)
{
    const FwmNoncausalCall *c = head->call;
    if (!c->normalize)
        return;
    load_row(c->K, c->K, part_of(c->initial_sum, head->b * c->H + head->h, c->K), z);
    for (size_t t = 0; t < head->length; t++) {
        const real *restrict k = numbers_at(c->k, head->b, c->N, t, head->h, c->K);
        for (size_t i = 0; i < c->K; i++)
            z[i] += k[i];
    }
}

void denominators_of(const FwmNoncausalCall *c, size_t n, const real *q, size_t stride, const real *restrict z,
                     real *den)
{
    for (size_t t = 0; t < n; t++) {
        const real *restrict row = q + t * stride;
        real along = 0;
#pragma omp simd reduction(+ : along)
        for (size_t i = 0; i < c->K; i++)
            along += z[i] * row[i];
        den[t] = (real)c->scale * along + (real)c->eps;
    }
}

/* The queries of an output head. */
static void read_state(const NoncausalHead *head, size_t output, size_t ld, const NoncausalForwardScratch *w)
{
    const FwmNoncausalCall *c = head->call;
    const size_t HO = output_heads(c);
    for (size_t t = 0; t < c->T; t += TOKEN_TILE) {
        const size_t n = fwm_min(TOKEN_TILE, c->T - t);
        const real *q = numbers_at(c->q, head->b, c->T, t, query_head(c, output), c->K);
        real *o = (real *)c->o + ((head->b * c->T + t) * HO + output) * c->V;
        gemm(n, ld, c->K, rows_of(q, c->q.stride), w->S, ld, 0, NULL, w->tile, ld);
        if (c->normalize)
            denominators_of(c, n, q, c->q.stride, w->z, w->den);
        for (size_t i = 0; i < n; i++) {
            const real factor = c->normalize ? (real)c->scale / w->den[i] : (real)c->scale;
            for (size_t j = 0; j < c->V; j++)
                o[i * HO * c->V + j] = factor * w->tile[i * ld + j];
        }
    }
}

static NoncausalForwardScratch take_scratch(const FwmNoncausalCall *c, Arena *arena)
{
    const size_t ld = fwm_padded(c->V);
    return (NoncausalForwardScratch){.S = take(arena, c->K * ld),
                                     .z = take(arena, c->K),
                                     .tile = take(arena, TOKEN_TILE * ld),
                                     .den = take(arena, TOKEN_TILE)};
}

static void head_task(void *context, size_t index, int thread)
{
    const NoncausalForward *f = context;
    const FwmNoncausalCall *c = f->call;
    const NoncausalHead head = noncausal_head(c, index);
    const size_t ld = fwm_padded(c->V);
    Arena arena = arena_of_thread(f->scratch, thread, f->stride);
    const NoncausalForwardScratch w = take_scratch(c, &arena);
    sum_of_keys(&head, w.z);
    for (size_t hv = head.h * head.group; hv < (head.h + 1) * head.group; hv++) {
        real *final_state = part_of(c->final_state, head.b * c->HV + hv, c->K * c->V);
        sum_writes(&head, hv, ld, w.S, w.tile);
        for (size_t r = 0; r < head.outputs; r++)
            read_state(&head, hv * head.outputs + r, ld, &w);
        for (size_t i = 0; final_state && i < c->K; i++)
            copy(c->V, w.S + i * ld, final_state + i * c->V);
    }
    if (c->final_sum)
        copy(c->K, w.z, part_of(c->final_sum, index, c->K));
}

static size_t bytes_of_thread(const FwmNoncausalCall *c)
{
    Arena arena = {0};
    take_scratch(c, &arena);
    return arena.next;
}

size_t noncausal_forward_scratch(const void *call, int threads)
{
    return bytes_of_thread(call) * (size_t)threads;
}

void noncausal_forward(const void *call, int threads, void *scratch)
{
    const FwmNoncausalCall *c = call;
    NoncausalForward f = {c, scratch, bytes_of_thread(c)};
    fwm_parallel_for(threads, c->B * c->H, head_task, &f);
}
