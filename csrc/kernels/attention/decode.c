/* Softmax attention, forward, for one token with a cache (T = 1): few queries, many keys, and reading the keys takes
 * the time. So they are read in the order in which they lie, all heads of a key together. A task is a part of the keys,
 * and computes for every query
 *
 *     m = max s2_j,   l = sum_j 2^(s2_j - m),   o = sum_j 2^(s2_j - m) v_j            (s2 = scale log2(e) q . k_j)
 *
 * The parts are then combined: with m the largest of the parts' m,
 *
 *     o = sum 2^(m_part - m) o_part / sum 2^(m_part - m) l_part.
 *
 * Derived in docs/mathematics/softmax_attention.md. */
#include "kernels/attention/softmax_attention.h"

#include "kernels/attention/tiles.h"
#include "kernels/attention/weights.h"
#include "kernels/base/arena.h"
#include "runtime/threads.h"

#define PART_KEYS 512

typedef struct {
    const FwmAttentionCall *a;
    real *o, *lse, *delta;
    size_t parts, lanes;              /* of a sequence; lanes: HQ, padded */
    real *part_o, *reference, *total; /* (B, parts, HQ, V), (B, parts, lanes), (B, parts, lanes) */
    char *scratch;                    /* scores of a part (keys x lanes), or a row of o, for each thread */
    size_t stride;
} AttentionDecode;

static size_t take_scratch(AttentionDecode *d, const FwmAttentionCall *a, int threads, void *scratch)
{
    const size_t r = sizeof(real), part_rows = (d->parts = fwm_tiles(a->S, PART_KEYS)) * a->B;
    Arena arena = arena_at(scratch);
    d->lanes = fwm_padded(a->HQ);
    d->part_o = take(&arena, part_rows * a->HQ * a->V);
    d->reference = take(&arena, part_rows * d->lanes);
    d->total = take(&arena, part_rows * d->lanes);
    d->stride = (fwm_min(PART_KEYS, a->S) * d->lanes + fwm_padded(a->V)) * r;
    d->scratch = take_bytes(&arena, d->stride * (size_t)threads);
    return arena.next - (uintptr_t)scratch;
}

/* y += a x, of any length. */
static inline void add_multiple(size_t n, real a, const real *restrict x, real *restrict y)
{
    const size_t whole = n / FWM_LANES * FWM_LANES;
    add_scaled(whole, a, x, y);
    for (size_t i = whole; i < n; i++)
        y[i] += a * x[i];
}

static void read_part(const AttentionDecode *d, size_t index, real *scores)
{
    const FwmAttentionCall *a = d->a;
    const size_t b = index / d->parts, first = index % d->parts * PART_KEYS, end = key_length(a, b),
                 keys = end > first ? fwm_min(PART_KEYS, end - first) : 0;
    const size_t group = a->HQ / a->H, token = b * a->S + first, ld = d->lanes;
    const real *q = (const real *)a->q + b * a->HQ * a->K, scale = (real)(a->scale * LOG2_E);
    const real *k = (const real *)a->k + token * a->H * a->K, *v = (const real *)a->v + token * a->H * a->V;
    real *o = d->part_o + index * a->HQ * a->V;
    memset(scores, 0, keys * ld * sizeof(real));
    for (size_t j = 0; j < keys; j++)
        for (size_t h = 0; h < a->H; h++, k += a->K)
            for (size_t i = h * group; i < (h + 1) * group; i++)
                scores[j * ld + i] = scale * inner_product(a->K, q + i * a->K, k);
    for (size_t i = 0; i < ld; i += FWM_LANES) {
        const vec reference = largest_scores(keys, ld, scores + i);
        vec_store(d->reference + index * ld + i, reference);
        vec_store(d->total + index * ld + i, weigh(keys, ld, reference, scores + i));
    }
    memset(o, 0, a->HQ * a->V * sizeof(real));
    for (size_t j = 0; j < keys; j++)
        for (size_t h = 0; h < a->H; h++, v += a->V)
            for (size_t i = h * group; i < (h + 1) * group; i++)
                add_multiple(a->V, scores[j * ld + i], v, o + i * a->V);
}

/* Combines a query's parts into its row of o, in `row`. */
static void combine_parts(const AttentionDecode *d, size_t index, real *row)
{
    const FwmAttentionCall *a = d->a;
    const size_t b = index / a->HQ, hq = index % a->HQ;
    real reference = LOWEST, total = 0;
    for (size_t part = b * d->parts; part < (b + 1) * d->parts; part++)
        reference = d->reference[part * d->lanes + hq] > reference ? d->reference[part * d->lanes + hq] : reference;
    memset(row, 0, a->V * sizeof(real));
    for (size_t part = b * d->parts; part < (b + 1) * d->parts; part++) {
        const real factor = (real)exp2((double)(d->reference[part * d->lanes + hq] - reference));
        total += factor * d->total[part * d->lanes + hq];
        add_multiple(a->V, factor, d->part_o + (part * a->HQ + hq) * a->V, row);
    }
    for (size_t i = 0; i < a->V && key_length(a, b) > 0; i++) /* without keys o is 0 and lse -inf */
        row[i] *= 1 / total;
    if (d->o)
        copy(a->V, row, d->o + index * a->V);
    if (d->lse)
        d->lse[index] = (real)(reference * LN_2 + log(total));
    if (d->delta)
        d->delta[index] = inner_product(a->V, (const real *)a->dout + index * a->V, row);
}

static void part_task(void *context, size_t index, int thread)
{
    const AttentionDecode *d = context;
    read_part(d, index, (real *)(d->scratch + (size_t)thread * d->stride));
}

static void combine_task(void *context, size_t index, int thread)
{
    const AttentionDecode *d = context;
    combine_parts(d, index, (real *)(d->scratch + (size_t)thread * d->stride));
}

size_t decode_scratch(const FwmAttentionCall *a, int threads)
{
    AttentionDecode d;
    return take_scratch(&d, a, threads, NULL);
}

void decode_rows(const FwmAttentionCall *a, real *o, real *lse, real *delta, int threads, void *scratch)
{
    AttentionDecode d = {.a = a, .o = o, .lse = lse, .delta = delta};
    take_scratch(&d, a, threads, scratch);
    fwm_parallel_for(threads, a->B * d.parts, part_task, &d);
    fwm_parallel_for(threads, a->B * a->HQ, combine_task, &d);
}
