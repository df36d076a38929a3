/* Softmax attention in tiles: the whole matrix of queries against keys is never formed.
 *
 * The G = HQ / H query heads that read key head h are one matrix of T G rows:
 *
 *     row i is token i / G of query head h G + i % G
 *
 * A row sees keys 0 .. keys_seen(row) - 1: all that its sequence has, or those that the causal mask leaves. A tile of
 * scores is KEYS x ROWS, a key a line and a row a lane, so that softmax's maxima and sums are taken lane by lane and
 * the products need no transposed keys. The queries are transposed instead, once for many tiles of keys. */
#ifndef FWM_KERNELS_ATTENTION_TILES_H
#define FWM_KERNELS_ATTENTION_TILES_H

#include <math.h>
#include <string.h>

#include "api/kernels.h"
#include "kernels/base/vector.h"

#define ROW_TILE (256 / FWM_REAL_BYTES) /* lanes of a tile: with KEY_TILE, a tile's weights take 16 kB */
#define KEY_TILE 64

/* A key head of a sequence. */
typedef struct {
    const FwmAttentionCall *a;
    size_t b, h, group; /* group: G */
} AttentionHead;

static inline AttentionHead head_at(const FwmAttentionCall *a, size_t index)
{
    return (AttentionHead){a, index / a->H, index % a->H, a->HQ / a->H};
}

/* The keys that there are of a sequence. */
static inline size_t key_length(const FwmAttentionCall *a, size_t b)
{
    return a->key_lengths ? (size_t)a->key_lengths[b] : a->S;
}

/* Keys that the row sees. */
static inline size_t keys_seen(const AttentionHead *head, size_t row)
{
    const FwmAttentionCall *a = head->a;
    const size_t all = key_length(a, head->b);
    return a->causal ? fwm_min(a->S - a->T + row / head->group + 1, all) : all;
}

/* The first row that sees the key. */
static inline size_t first_row_that_sees(const AttentionHead *head, size_t key)
{
    const size_t last = head->a->S - head->a->T; /* the last key that the first row sees */
    return head->a->causal && key > last ? (key - last) * head->group : 0;
}

/* The index of a row in (B, T, HQ), and of a key in (B, S, H). */
static inline size_t row_index(const AttentionHead *head, size_t row)
{
    return (head->b * head->a->T + row / head->group) * head->a->HQ + head->h * head->group + row % head->group;
}

static inline size_t key_index(const AttentionHead *head, size_t key)
{
    return (head->b * head->a->S + key) * head->a->H + head->h;
}

typedef size_t (*IndexOf)(const AttentionHead *head, size_t i);

/* Gathers `count` rows or keys from `start` on, of this width, into the rows of a tile (rows of ld, padded with zeros);
 * store_tile scatters them back. */
static inline void load_tile(const AttentionHead *head, IndexOf index, size_t start, size_t count, const void *array,
                             size_t width, real *tile, size_t ld)
{
    for (size_t i = 0; i < count; i++) {
        copy(width, (const real *)array + index(head, start + i) * width, tile + i * ld);
        for (size_t j = width; j < ld; j++)
            tile[i * ld + j] = 0;
    }
}

static inline void store_tile(const AttentionHead *head, IndexOf index, size_t start, size_t count, const real *tile,
                              size_t ld, void *array, size_t width)
{
    for (size_t i = 0; i < count; i++)
        copy(width, tile + i * ld, (real *)array + index(head, start + i) * width);
}

/* Lanes of a tile of rows that do not see the key: the first ones. */
static inline size_t masked_lanes(const AttentionHead *head, size_t key, size_t first_row, size_t lanes)
{
    const size_t first = first_row_that_sees(head, key);
    return first > first_row ? fwm_min(first - first_row, lanes) : 0;
}

/* Whether no number is infinite or NaN. In a tile that the causal mask cuts, masked weights are zeros, and zero times
 * such a number would carry NaN to a row that does not see it. */
static inline bool all_finite(size_t n, const real *x)
{
    real total = 0;
#pragma omp simd reduction(+ : total)
    for (size_t i = 0; i < n; i++)
        total += 0 * x[i];
    return total == 0;
}

/* x . y, of any length. */
static inline real inner_product(size_t n, const real *x, const real *y)
{
    const size_t whole = n / FWM_LANES * FWM_LANES;
    real total = dot(whole, x, y);
    for (size_t i = whole; i < n; i++)
        total += x[i] * y[i];
    return total;
}

#endif
