/* Linear attention without a causal mask, backward. Forward (noncausal.h), for a query q of an output head:
 *
 *     o = scale S^T q / den,   den = scale z . q + eps or 1,   S = S0 + sum_j k_j v_j^T,   z = z0 + sum_j k_j
 *
 * Saved: only the inputs. S, z and den are computed again. With y = do / den,
 *
 *     dq = scale S y + scale dden z,   dden = -(do . o) / den = -(scale q . S y) / den
 *     dS = dfinal_state + sum over queries of scale q y^T,   dz = dfinal_sum + sum over queries of scale dden q
 *     dk_j = dS v_j + dz,   dv_j = dS^T k_j,   dS0 = dS,   dz0 = dz
 *
 * and zeros for keys beyond the length. A task is a key head of a sequence, whose value heads add to dk, dz and, where
 * they share queries, to dq in order.
 *
 * See docs/mathematics/noncausal.md. */
#include "kernels/noncausal/noncausal.h"

#include <string.h>

#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "runtime/threads.h"

typedef struct {
    real *S, *dS, *z, *dz;     /* K x ld_v, K x ld_v, K, K */
    real *state_t;             /* V x ld_k: of S, then of dS */
    real *values, *keys, *den; /* TOKEN_TILE x ld_v, TOKEN_TILE x ld_k, TOKEN_TILE */
} NoncausalBackwardScratch;

typedef struct {
    const FwmNoncausalCall *call;
    size_t ld_k, ld_v;
    char *scratch;
    size_t stride;
} NoncausalBackward;

static NoncausalBackwardScratch take_scratch(const NoncausalBackward *f, Arena *arena)
{
    const FwmNoncausalCall *c = f->call;
    return (NoncausalBackwardScratch){.S = take(arena, c->K * f->ld_v),
                                      .dS = take(arena, c->K * f->ld_v),
                                      .z = take(arena, c->K),
                                      .dz = take(arena, c->K),
                                      .state_t = take(arena, c->V * f->ld_k),
                                      .values = take(arena, TOKEN_TILE * f->ld_v),
                                      .keys = take(arena, TOKEN_TILE * f->ld_k),
                                      .den = take(arena, TOKEN_TILE)};
}

/* out (V x ld_k) = x^T, x (K x ld_v), padded with zeros */
static void transpose_state(const NoncausalBackward *f, const real *x, real *out)
{
    const size_t K = f->call->K, V = f->call->V;
    if (f->ld_k != K)
        memset(out, 0, V * f->ld_k * sizeof(real));
    transpose(K, V, x, f->ld_v, out, f->ld_k);
}

/* A tile's part of dden: adds to S y, in w->keys, and to dz. */
static void denominators_backward(const NoncausalBackward *f, size_t n, const real *q,
                                  const NoncausalBackwardScratch *w)
{
    const FwmNoncausalCall *c = f->call;
    const real scale = (real)c->scale;
    real *restrict dz = w->dz;
    for (size_t t = 0; t < n; t++) {
        const real *restrict row = q + t * c->q.stride;
        real *restrict Sy = w->keys + t * f->ld_k, along = 0;
#pragma omp simd reduction(+ : along)
        for (size_t i = 0; i < c->K; i++)
            along += row[i] * Sy[i];
        const real dden = -(scale * along) / w->den[t];
        for (size_t i = 0; i < c->K; i++) {
            Sy[i] += dden * w->z[i];
            dz[i] += scale * dden * row[i];
        }
    }
}

/* The queries of an output head: dq, and what they add to dS and dz. w->state_t: S^T. */
static void queries_backward(const NoncausalBackward *f, const NoncausalHead *head, size_t output, bool first,
                             const NoncausalBackwardScratch *w)
{
    const FwmNoncausalCall *c = f->call;
    const size_t HO = output_heads(c), V = c->V, K = c->K, hq = query_head(c, output);
    for (size_t t = 0; t < c->T; t += TOKEN_TILE) {
        const size_t n = fwm_min(TOKEN_TILE, c->T - t), token = head->b * c->T + t;
        const real *q = numbers_at(c->q, head->b, c->T, t, hq, K);
        real *dq = (real *)c->dq + (token * c->HQ + hq) * K;
        gather_tile(n, V, (const real *)c->dout + (token * HO + output) * V, HO * V, f->ld_v, w->values);
        if (c->normalize)
            denominators_of(c, n, q, c->q.stride, w->z, w->den);
        for (size_t i = 0; c->normalize && i < n; i++)
            scale(f->ld_v, 1 / w->den[i], w->values + i * f->ld_v, w->values + i * f->ld_v);
        gemm(n, f->ld_k, V, rows_of(w->values, f->ld_v), w->state_t, f->ld_k, 0, NULL, w->keys, f->ld_k);
        if (c->normalize)
            denominators_backward(f, n, q, w);
        for (size_t i = 0; i < n; i++)
            for (size_t j = 0; j < K; j++) {
                const real own = (real)c->scale * w->keys[i * f->ld_k + j];
                dq[i * c->HQ * K + j] = first ? own : dq[i * c->HQ * K + j] + own;
            }
        if (c->scale != 1)
            scale(n * f->ld_v, (real)c->scale, w->values, w->values);
        gemm(K, f->ld_v, n, transposed(q, c->q.stride), w->values, f->ld_v, 1, w->dS, w->dS, f->ld_v);
    }
}

/* dk (but for dz) and dv of a value head. w->state_t: dS^T. */
static void keys_backward(const NoncausalBackward *f, const NoncausalHead *head, size_t hv, bool first,
                          const NoncausalBackwardScratch *w)
{
    const FwmNoncausalCall *c = f->call;
    const size_t K = c->K, V = c->V;
    for (size_t t = 0; t < c->N; t += TOKEN_TILE) {
        const size_t all = fwm_min(TOKEN_TILE, c->N - t), token = head->b * c->N + t,
                     n = head->length > t ? fwm_min(all, head->length - t) : 0;
        const real *k = numbers_at(c->k, head->b, c->N, t, head->h, K), *v = numbers_at(c->v, head->b, c->N, t, hv, V);
        real *dk = (real *)c->dk + (token * c->H + head->h) * K, *dv = (real *)c->dv + (token * c->HV + hv) * V;
        if (n == all && first && f->ld_k == K && f->ld_v == V) { /* rows without gaps, that nobody has written */
            gemm(n, V, K, rows_of(k, c->k.stride), w->dS, V, 0, NULL, dv, c->HV * V);
            gemm(n, K, V, rows_of(v, c->v.stride), w->state_t, K, 0, NULL, dk, c->H * K);
            continue;
        }
        gemm(n, f->ld_v, K, rows_of(k, c->k.stride), w->dS, f->ld_v, 0, NULL, w->values, f->ld_v);
        gemm(n, f->ld_k, V, rows_of(v, c->v.stride), w->state_t, f->ld_k, 0, NULL, w->keys, f->ld_k);
        for (size_t i = 0; i < all; i++) {
            load_row(i < n ? V : 0, V, w->values + i * f->ld_v, dv + i * c->HV * V);
            for (size_t j = 0; j < K; j++) {
                const real own = i < n ? w->keys[i * f->ld_k + j] : 0;
                dk[i * c->H * K + j] = first ? own : dk[i * c->H * K + j] + own;
            }
        }
    }
}

static void value_head_backward(const NoncausalBackward *f, const NoncausalHead *head, size_t hv,
                                const NoncausalBackwardScratch *w)
{
    const FwmNoncausalCall *c = f->call;
    const size_t state = head->b * c->HV + hv, shared = output_heads(c) / c->HQ;
    const real *dfinal = part_of(c->dfinal_state, state, c->K * c->V);
    real *dinitial = part_of(c->dinitial_state, state, c->K * c->V);
    sum_writes(head, hv, f->ld_v, w->S, w->values);
    transpose_state(f, w->S, w->state_t);
    for (size_t i = 0; i < c->K; i++)
        load_row(c->V, f->ld_v, dfinal ? dfinal + i * c->V : NULL, w->dS + i * f->ld_v);
    for (size_t r = 0; r < head->outputs; r++)
        queries_backward(f, head, hv * head->outputs + r, (hv * head->outputs + r) % shared == 0, w);
    transpose_state(f, w->dS, w->state_t);
    keys_backward(f, head, hv, hv % head->group == 0, w);
    for (size_t i = 0; dinitial && i < c->K; i++)
        copy(c->V, w->dS + i * f->ld_v, dinitial + i * c->V);
}

static void head_task(void *context, size_t index, int thread)
{
    const NoncausalBackward *f = context;
    const FwmNoncausalCall *c = f->call;
    const NoncausalHead head = noncausal_head(c, index);
    Arena arena = arena_of_thread(f->scratch, thread, f->stride);
    const NoncausalBackwardScratch w = take_scratch(f, &arena);
    sum_of_keys(&head, w.z);
    load_row(c->K, c->K, part_of(c->dfinal_sum, index, c->K), w.dz);
    for (size_t hv = head.h * head.group; hv < (head.h + 1) * head.group; hv++)
        value_head_backward(f, &head, hv, &w);
    for (size_t t = 0; c->normalize && t < head.length; t++) {
        real *restrict dk = (real *)c->dk + ((head.b * c->N + t) * c->H + head.h) * c->K;
        for (size_t i = 0; i < c->K; i++)
            dk[i] += w.dz[i];
    }
    if (c->dinitial_sum)
        copy(c->K, w.dz, part_of(c->dinitial_sum, index, c->K));
}

static NoncausalBackward backward_of(const FwmNoncausalCall *c, void *scratch)
{
    NoncausalBackward f = {.call = c, .ld_k = fwm_padded(c->K), .ld_v = fwm_padded(c->V), .scratch = scratch};
    Arena arena = {0};
    take_scratch(&f, &arena);
    f.stride = arena.next;
    return f;
}

size_t noncausal_backward_scratch(const void *call, int threads)
{
    return backward_of(call, NULL).stride * (size_t)threads;
}

void noncausal_backward(const void *call, int threads, void *scratch)
{
    const FwmNoncausalCall *c = call;
    NoncausalBackward f = backward_of(c, scratch);
    fwm_parallel_for(threads, c->B * c->H, head_task, &f);
}
