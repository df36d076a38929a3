/* Softmax attention in tiles: no matrix of queries against keys is ever whole.
 *
 * The G = HQ / H query heads that read one key head are one matrix of T G rows: row i is token i / G of query head h G
 * + i % G. A row sees keys 0 .. seen(row) - 1. Tiles of rows lie across: the scores of a tile are KEYS x ROWS, a key a
 * line and a row a lane, so that softmax's maxima and sums are taken lane by lane, and the products want no transposed
 * key. Transposed are the queries, once for many tiles of keys. */
#ifndef FWM_KERNELS_ATTENTION_TILES_H
#define FWM_KERNELS_ATTENTION_TILES_H

#include <math.h>
#include <string.h>

#include "kernels/base/vector.h"
#include "api/kernels.h"

#define ROW_TILE (256 / FWM_REAL_BYTES) /* lanes of a tile: with KEY_TILE, a tile's weights take 16 kB */
#define KEY_TILE 64

/* A key head of a sequence. */
typedef struct {
    const FwmAttentionCall *a;
    size_t b, h, group; /* group: G */
} Head;

static inline Head head_at(const FwmAttentionCall *a, size_t index)
{
    return (Head){a, index / a->H, index % a->H, a->HQ / a->H};
}

/* Keys that the row sees. */
static inline size_t seen(const Head *head, size_t row)
{
    return head->a->causal ? head->a->S - head->a->T + row / head->group + 1 : head->a->S;
}

/* The first row that sees the key. */
static inline size_t first_to_see(const Head *head, size_t key)
{
    const size_t last = head->a->S - head->a->T; /* that the first row sees */
    return head->a->causal && key > last ? (key - last) * head->group : 0;
}

/* Where a row, or a key, stands in (B, T, HQ) and (B, S, H). */
static inline size_t row_index(const Head *head, size_t row)
{
    return (head->b * head->a->T + row / head->group) * head->a->HQ + head->h * head->group + row % head->group;
}

static inline size_t key_index(const Head *head, size_t key)
{
    return (head->b * head->a->S + key) * head->a->H + head->h;
}

typedef size_t (*IndexOf)(const Head *head, size_t i);

/* `count` rows or keys from `start` on, of this width, become the rows of a tile (rows of ld, padded with zeros); and
 * back. */
static inline void load_tile(const Head *head, IndexOf index, size_t start, size_t count, const void *array,
                             size_t width, real *tile, size_t ld)
{
    for (size_t i = 0; i < count; i++) {
        copy(width, (const real *)array + index(head, start + i) * width, tile + i * ld);
        for (size_t j = width; j < ld; j++)
            tile[i * ld + j] = 0;
    }
}

static inline void store_tile(const Head *head, IndexOf index, size_t start, size_t count, const real *tile, size_t ld,
                              void *array, size_t width)
{
    for (size_t i = 0; i < count; i++)
        copy(width, tile + i * ld, (real *)array + index(head, start + i) * width);
}

/* Lanes of a tile of rows that do not see the key. */
static inline size_t blind_lanes(const Head *head, size_t key, size_t first_row, size_t lanes)
{
    const size_t first = first_to_see(head, key);
    return first > first_row ? fwm_min(first - first_row, lanes) : 0;
}

/* Whether no number is infinite or NaN. Where a tile is cut by the triangle, the weights that are not there are zeros,
 * and zero times such a number would bring it to a row that does not see it. */
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
