/* The fwm read-out: the fast weight memory of Schlag, Munkhdalai and Schmidhuber (2021), a delta rule whose state is
 * kept at norm 1.
 *
 *     d_t = e_{v_t} - o_t,  o_t = W_{t-1} k_t
 *     W~_t = W_{t-1} + beta_t d_t k_t^T,   W_t = W~_t / s_t,   s_t = max(1, |W~_t|_F), s_1 = 1, W_0 = 0
 *     y = layer_norm(W_L q) over the N values: biased variance, eps 1e-5, no affine part
 *
 * The norm couples the whole state, but it follows from scalars: with r = |o|^2, a = o[v], kk = |k|^2 and
 * n = |W_{t-1}|^2,
 *
 *     |W~_t|^2 = n + 2 beta (a - r) + beta^2 (r - 2 a + 1) kk
 *
 * Forward, in chunks of at most C = 16 tokens, so that the work is in matrix products. S_t is the product of the s
 * within the chunk, F_t = S_{t-1} beta_t d_t, and W0 is the state before the chunk:
 *
 *     W_t = (W0 + sum_{j <= t} F_j k_j^T) / S_t
 *     o_t = (W0 k_t + sum_{j < t} F_j (k_j . k_t)) / S_{t-1}
 *
 * A chunk ends early if S_t exceeds LARGEST_GROWTH, because float32 could not carry it much further.
 *
 * Backward: saved W0 of every chunk, o_t, and the scalars; d_t and F_t are recomputed. Write dL/dW_t = H_t + gamma_t
 * W_t and c_t = <dL/dW_t, W_t>; at the end H = dy q^T, gamma = 0, c = dy . (W_L q). Through the division, with s_t =
 * |W~_t|:
 *
 *     dL/dW~_t = H_t / s_t + kappa W~_t,    kappa = (gamma_t - c_t) / s_t^2 if clamped, else gamma_t
 *     g = (dL/dW~_t) k_t = x / s_t + kappa (o + beta kk d),   x = H_t k_t
 *     dbeta_t = d . g,   eta = beta (kappa d - g)
 *     H_{t-1} = H_t / s_t + eta k_t^T,   gamma_{t-1} = kappa,   c_{t-1} = (clamped ? 0 : c_t) - beta g[v]
 *     dk_t = (beta / s_t) H_t^T d + kappa beta^2 |d|^2 k_t + W_{t-1}^T eta
 *
 * In the chunk, with P_t = eta_t / S_{t-1} and H_C the gradient at the chunk's end:
 *
 *     H_t = S_t (H_C / S_C + sum_{j > t} P_j k_j^T),   x_t = S_t (H_C k_t / S_C + sum_{j > t} P_j (k_j . k_t))
 *     dk_t = H_C^T F_t / S_C + W0^T P_t + sum_j M_jt k_j
 *     M_jt = P_j . F_t for j > t,  P_t . F_j for j < t,  kappa beta^2 |d|^2 for j = t
 *
 * Only rows of W of values that have been written are stored, transposed: p x rows. A row is 0 before its first write,
 * and its gradient there is not needed. Early in training s is 3 to 6 a token: a row fades from the state within a few
 * dozen tokens, and the gradient fades as fast in the backward. A row whose |row|^2 has fallen below FADED times the
 * state's is dropped, its place goes to the next value written, and the backward stops when the gradient of the state
 * has fallen below GONE times what it was at the end. Both thresholds lie below the resolution of the number type
 * (test_readouts.py compares with the full form). Without them most of the work would be on numbers that vanish in
 * every sum, many of them subnormal and slow. The stop requires that c does not accumulate rounding errors: it is
 * summed anew at every chunk.
 *
 * Derived in docs/mathematics/readout_fwm.md. */
#include <math.h>
#include <string.h>

#include "kernels/base/arena.h"
#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"
#include "kernels/retrieval/readouts/layer_norm.h"
#include "kernels/retrieval/readouts/readout.h"

#define LARGEST_GROWTH (FWM_REAL_IS_DOUBLE ? 1e100 : 1e14)
#define FADED (FWM_REAL_IS_DOUBLE ? 1e-34 : 1e-16)
#define GONE (FWM_REAL_IS_DOUBLE ? 1e-24 : 1e-12)
#define C FWM_TILE /* tokens of a chunk, at most */

/* The scalars of a token, which the backward needs. */
typedef struct {
    real a, r, kk;    /* o[v], |o|^2, |k|^2 */
    real s, S_before; /* s_t, S_{t-1} */
    int32_t row;      /* of W, where value v_t is kept */
    int32_t clamped;
} NormedReadoutToken;

typedef struct {
    size_t start, count;               /* tokens */
    size_t rows;                       /* of W in use, padded */
    size_t first_assigned, n_assigned; /* the rows assigned to values just before this chunk, in `assigned` below */
    real S;                            /* S_C */
} NormedReadoutChunk;

typedef struct {
    size_t ld_rows, n_chunks;
    size_t n_rows, n_free, n_assigned; /* rows used so far; entries of `free` and of `assigned` below */
    double reciprocal_deviation;       /* of the layer norm */
    double gamma, c;                   /* of the backward, see above */
    double gone;                       /* H, gamma and c below this count as 0; -1 once they are */
} NormedReadoutTotals;

/* ld_rows: the distinct values of the sequence, padded; the length of every row of values below. */
typedef struct {
    NormedReadoutTotals *totals;
    int32_t *row_of;            /* N: row of a value, or -1 */
    int32_t *value_of;          /* ld_rows: value of a row, or -1 */
    int32_t *free;              /* ld_rows: a stack of rows without a value */
    int32_t *assigned;          /* L: rows in the order in which they were assigned to values */
    NormedReadoutToken *tokens; /* L */
    NormedReadoutChunk *chunks; /* L: at most one a token */
    real *raw;                  /* N: W q before the layer norm */
    real *draw;                 /* ld_rows: the gradient of raw, by row */
    real *o;                    /* L x ld_rows */
    real *F, *P;                /* C x ld_rows */
    real *F_t, *P_t;            /* ld_rows x C, transposed */
    real *keys_t;               /* ld x C, transposed */
    real *dkeys_t;              /* ld x C, transposed */
    real *gram, *M;             /* C x C; gram[j][t] = k_j . k_t */
    real *H;                    /* ld x ld_rows */
    /* (chunks + 1) x ld x ld_rows: the state before each chunk, and the last one. There is room for L chunks, should
     * each be of one token; pages that are not used are not touched, and take no memory. */
    real *W;
} NormedReadoutScratch;

static NormedReadoutScratch take_scratch(size_t length, size_t n_values, size_t ld, size_t ld_rows, Arena *arena)
{
    NormedReadoutScratch w;
    w.totals = take_bytes(arena, sizeof(NormedReadoutTotals));
    w.row_of = take_bytes(arena, n_values * sizeof(int32_t));
    w.value_of = take_bytes(arena, ld_rows * sizeof(int32_t));
    w.free = take_bytes(arena, ld_rows * sizeof(int32_t));
    w.assigned = take_bytes(arena, length * sizeof(int32_t));
    w.tokens = take_bytes(arena, length * sizeof(NormedReadoutToken));
    w.chunks = take_bytes(arena, length * sizeof(NormedReadoutChunk));
    w.raw = take(arena, n_values);
    w.draw = take(arena, ld_rows);
    w.o = take(arena, length * ld_rows);
    w.F = take(arena, C * ld_rows);
    w.P = take(arena, C * ld_rows);
    w.F_t = take(arena, C * ld_rows);
    w.P_t = take(arena, C * ld_rows);
    w.keys_t = take(arena, ld * C);
    w.dkeys_t = take(arena, ld * C);
    w.gram = take(arena, C * C);
    w.M = take(arena, C * C);
    w.H = take(arena, ld * ld_rows);
    w.W = take(arena, (length + 1) * ld * ld_rows);
    return w;
}

/* For the most distinct values that a sequence can have. */
static size_t scratch_bytes(size_t length, size_t n_values, size_t ld, size_t ld_queries)
{
    (void)ld_queries;
    Arena arena = {0};
    take_scratch(length, n_values, ld, fwm_padded(fwm_min(length, n_values)), &arena);
    return arena.next;
}

/* ld_rows is known after begin_scratch; it stands in the totals, the first array. */
static NormedReadoutScratch scratch_at(const ReadoutSequence *s, void *scratch)
{
    const NormedReadoutTotals *totals = scratch;
    Arena arena = arena_at(scratch);
    return take_scratch(s->length, s->n_values, s->ld, totals->ld_rows, &arena);
}

/* An empty state, with a row for every distinct value of the sequence. */
static NormedReadoutScratch begin_scratch(const ReadoutSequence *s, void *scratch)
{
    Arena arena = arena_at(scratch);
    const NormedReadoutScratch first = take_scratch(s->length, s->n_values, s->ld, 0, &arena); /* totals and row_of */
    size_t distinct = 0;
    memset(first.row_of, 0, s->n_values * sizeof(int32_t));
    for (size_t t = 0; t < s->length; t++)
        distinct += first.row_of[s->values[t]]++ == 0;
    for (size_t n = 0; n < s->n_values; n++)
        first.row_of[n] = -1;
    *first.totals = (NormedReadoutTotals){.ld_rows = fwm_padded(distinct)};
    return scratch_at(s, scratch);
}

/* The row of value v; if it has none, a free row or a new one is assigned to it. */
static int32_t row_for_value(const NormedReadoutScratch *w, int32_t v)
{
    NormedReadoutTotals *totals = w->totals;
    if (w->row_of[v] < 0) {
        const int32_t row = totals->n_free ? w->free[--totals->n_free] : (int32_t)totals->n_rows++;
        w->row_of[v] = row;
        w->value_of[row] = v;
        w->assigned[totals->n_assigned++] = row;
    }
    return w->row_of[v];
}

/* Frees the rows of W (p x ld_rows) that have faded. A row of zeros is kept: its value has not been written yet. */
static void drop_faded_rows(const ReadoutSequence *s, const NormedReadoutScratch *w, size_t rows, double norm, real *W)
{
    const size_t ld_rows = w->totals->ld_rows;
    real *squares = w->P;
    memset(squares, 0, rows * sizeof(real));
    for (size_t i = 0; i < s->features; i++)
        for (size_t r = 0; r < rows; r += FWM_LANES) {
            const vec x = vec_load(W + i * ld_rows + r);
            vec_store(squares + r, vec_load(squares + r) + x * x);
        }
    for (size_t r = 0; r < w->totals->n_rows; r++) {
        if (w->value_of[r] < 0 || !(squares[r] > 0 && squares[r] < FADED * norm))
            continue;
        for (size_t i = 0; i < s->features; i++)
            W[i * ld_rows + r] = 0;
        w->row_of[w->value_of[r]] = -1;
        w->value_of[r] = -1;
        w->free[w->totals->n_free++] = (int32_t)r;
    }
}

/* keys_t and gram of `count` keys; columns behind them are zero. */
static void multiply_keys(const ReadoutSequence *s, const NormedReadoutScratch *w, const real *keys, size_t count)
{
    if (count < C)
        memset(w->keys_t, 0, C * s->ld * sizeof(real));
    transpose(count, s->features, keys, s->ld, w->keys_t, C);
    gemm(count, C, s->features, rows_of(keys, s->ld), w->keys_t, C, 0, NULL, w->gram, C);
}

/* target = scale (target + sum_{j = from}^{to - 1} weights[j * C] others_j); returns |target|^2 */
static real combine(size_t rows, size_t from, size_t to, const real *weights, const real *others, size_t ld_rows,
                    real scale, real *target)
{
    vec square = {0};
    for (size_t i = 0; i < rows; i += FWM_LANES) {
        vec x = vec_load(target + i);
        for (size_t j = from; j < to; j++)
            x += weights[j * C] * vec_load(others + j * ld_rows + i);
        x *= scale;
        square += x * x;
        vec_store(target + i, x);
    }
    return vec_sum(square);
}

/* F_t = S_{t-1} beta_t (e_v - o_t) */
static void write_difference(size_t rows, const NormedReadoutToken *token, real beta, const real *restrict o,
                             real *restrict F)
{
    const real scale = -token->S_before * beta;
    for (size_t i = 0; i < rows; i += FWM_LANES)
        vec_store(F + i, scale * vec_load(o + i));
    F[token->row] -= scale;
}

static void scale_rows(size_t n, size_t rows, real scale, real *x, size_t ld_rows)
{
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < rows; i += FWM_LANES)
            vec_store(x + t * ld_rows + i, scale * vec_load(x + t * ld_rows + i));
}

/* The forward of a chunk: o, the tokens' scalars, F, and the next state. norm is |W|^2. */
static void run_chunk(const ReadoutSequence *s, const NormedReadoutScratch *w, NormedReadoutChunk *chunk,
                      const real *W0, real *W_next, double *norm)
{
    const size_t ld_rows = w->totals->ld_rows, rows = chunk->rows;
    const real *keys = s->keys + chunk->start * s->ld;
    real *o = w->o + chunk->start * ld_rows;
    multiply_keys(s, w, keys, chunk->count);
    gemm(chunk->count, rows, s->features, rows_of(keys, s->ld), W0, ld_rows, 0, NULL, o, ld_rows);
    real S = 1;
    for (size_t t = 0; t < chunk->count; t++, o += ld_rows) {
        NormedReadoutToken *token = w->tokens + chunk->start + t;
        const real beta = s->beta[chunk->start + t];
        token->r = combine(rows, 0, t, w->gram + t, w->F, ld_rows, 1 / S, o);
        token->a = o[token->row];
        token->kk = w->gram[t * C + t];
        token->S_before = S;
        write_difference(rows, token, beta, o, w->F + t * ld_rows);
        const double a = token->a, r = token->r, b = beta;
        *norm += 2 * b * (a - r) + b * b * (r - 2 * a + 1) * token->kk;
        token->clamped = *norm > 1 && chunk->start + t > 0;
        token->s = token->clamped ? (real)sqrt(*norm) : 1;
        *norm = token->clamped ? 1 : *norm;
        S *= token->s;
        if (S > (real)LARGEST_GROWTH)
            chunk->count = t + 1;
    }
    chunk->S = S;
    scale_rows(chunk->count, rows, 1 / S, w->F, ld_rows);
    gemm(s->features, rows, chunk->count, transposed(keys, s->ld), w->F, ld_rows, 1 / S, W0, W_next, ld_rows);
}

/* A chunk of at most C tokens from `start`, with a row for each of its values. New rows of W (p x ld_rows) become 0. */
static NormedReadoutChunk begin_chunk(const ReadoutSequence *s, const NormedReadoutScratch *w, size_t start,
                                      size_t rows_before, real *W)
{
    NormedReadoutChunk chunk = {
        .start = start, .count = fwm_min(C, s->length - start), .first_assigned = w->totals->n_assigned};
    for (size_t t = start; t < start + chunk.count; t++)
        w->tokens[t].row = row_for_value(w, s->values[t]);
    chunk.n_assigned = w->totals->n_assigned - chunk.first_assigned;
    chunk.rows = fwm_padded(w->totals->n_rows);
    for (size_t i = 0; i < s->features && chunk.rows > rows_before; i++)
        memset(W + i * w->totals->ld_rows + rows_before, 0, (chunk.rows - rows_before) * sizeof(real));
    return chunk;
}

/* All chunks; returns the last state (p x ld_rows). */
static const real *run_chunks(const ReadoutSequence *s, const NormedReadoutScratch *w)
{
    const size_t state = s->ld * w->totals->ld_rows;
    double norm = 0;
    size_t rows = 0;
    real *W = w->W;
    for (size_t start = 0; start < s->length; W += state) {
        NormedReadoutChunk *chunk = w->chunks + w->totals->n_chunks++;
        *chunk = begin_chunk(s, w, start, rows, W);
        rows = chunk->rows;
        run_chunk(s, w, chunk, W, W + state, &norm);
        drop_faded_rows(s, w, rows, norm, W + state);
        start += chunk->count;
    }
    return W;
}

/* The number of rows of the last state. */
static size_t rows_at_end(const NormedReadoutScratch *w)
{
    return w->totals->n_chunks ? w->chunks[w->totals->n_chunks - 1].rows : 0;
}

static void forward(const ReadoutSequence *s, void *scratch, real *y)
{
    const NormedReadoutScratch w = begin_scratch(s, scratch);
    const real *W = run_chunks(s, &w);
    const size_t rows = rows_at_end(&w);
    real *by_row = w.F;
    gemm(1, rows, s->features, rows_of(s->query, s->ld), W, w.totals->ld_rows, 0, NULL, by_row, rows);
    const real nothing = answer_of_nothing(s->ld, s->query);
    for (size_t n = 0; n < s->n_values; n++)
        w.raw[n] = w.row_of[n] < 0 ? nothing : by_row[w.row_of[n]];
    w.totals->reciprocal_deviation = layer_norm_forward(s->n_values, w.raw, y, 1);
}

/* The largest number in H (p x rows); infinity if there is a NaN. */
static double largest(const ReadoutSequence *s, const NormedReadoutScratch *w, size_t rows)
{
    real most = 0, nan = 0;
    for (size_t i = 0; i < s->features; i++) {
        const real *H = w->H + i * w->totals->ld_rows;
#pragma omp simd reduction(max : most) reduction(+ : nan)
        for (size_t r = 0; r < rows; r++) {
            most = FWM_FABS(H[r]) > most ? FWM_FABS(H[r]) : most;
            nan += H[r] * 0;
        }
    }
    return nan == 0 ? most : INFINITY;
}

/* The layer norm's backward gives draw, the gradient of raw = W q. Then H = draw q^T, gamma = 0, c = draw . raw. */
static size_t backward_begin(const ReadoutSequence *s, void *scratch, const real *y, const real *dy)
{
    const NormedReadoutScratch w = scratch_at(s, scratch);
    const size_t ld_rows = w.totals->ld_rows;
    const LayerNormBackward norm = layer_norm_backward(s->n_values, y, dy, w.totals->reciprocal_deviation);
    double c = 0;
    memset(w.draw, 0, ld_rows * sizeof(real));
    for (size_t n = 0; n < s->n_values; n++) {
        if (w.row_of[n] < 0)
            continue;
        const double draw = layer_norm_dx(&norm, y[n], dy[n]);
        w.draw[w.row_of[n]] = (real)draw;
        c += draw * w.raw[n];
    }
    for (size_t i = 0; i < s->features; i++)
        for (size_t r = 0; r < ld_rows; r++)
            w.H[i * ld_rows + r] = s->query[i] * w.draw[r];
    w.totals->gamma = 0;
    w.totals->c = c;
    w.totals->gone = GONE * largest(s, &w, ld_rows);
    return w.totals->n_chunks;
}

/* One token of the backward: x holds H_C k_t / S_C + sum_{j > t} P_j (k_j . k_t) and becomes P_t. Returns dbeta. */
static real backward_token(NormedReadoutTotals *totals, const NormedReadoutToken *token, size_t rows, real beta,
                           const real *restrict o, real *restrict x, real *M_tt)
{
    const double a = token->a, r = token->r, kk = token->kk, S = token->S_before, b = beta;
    const double kappa = token->clamped ? (totals->gamma - totals->c) / ((double)token->s * token->s) : totals->gamma;
    const double through_o = kappa * (1 - b * kk);
    const double o_g = S * dot(rows, o, x) + through_o * r + kappa * b * kk * a;
    const double g_v = S * x[token->row] + through_o * a + kappa * b * kk;
    const real on_o = (real)(-b * (through_o + kappa) / S);
    for (size_t i = 0; i < rows; i += FWM_LANES)
        vec_store(x + i, on_o * vec_load(o + i) - beta * vec_load(x + i));
    x[token->row] += (real)(b * through_o / S);
    *M_tt = (real)(kappa * b * b * (r - 2 * a + 1));
    totals->c = (token->clamped ? 0 : totals->c) - b * g_v;
    totals->gamma = kappa;
    return (real)(g_v - o_g);
}

/* dkeys_t = H_C F^T / S_C + W0 P^T + K^T M */
static void key_gradients(const ReadoutSequence *s, const NormedReadoutScratch *w, const NormedReadoutChunk *chunk,
                          const real *keys)
{
    const size_t ld_rows = w->totals->ld_rows, rows = chunk->rows, n = chunk->count;
    if (n < C) {
        memset(w->F_t, 0, C * rows * sizeof(real));
        memset(w->P_t, 0, C * rows * sizeof(real));
    }
    transpose(n, rows, w->F, ld_rows, w->F_t, C);
    transpose(n, rows, w->P, ld_rows, w->P_t, C);
    real products[C * C];
    gemm(n, C, rows, rows_of(w->P, ld_rows), w->F_t, C, 0, NULL, products, C);
    for (size_t j = 0; j < n; j++)
        for (size_t t = 0; t < j; t++)
            w->M[j * C + t] = w->M[t * C + j] = products[j * C + t];
    const real *W0 = w->W + (size_t)(chunk - w->chunks) * s->ld * ld_rows;
    gemm(s->features, C, rows, rows_of(W0, ld_rows), w->P_t, C, 0, NULL, w->dkeys_t, C);
    scale_rows(1, C * rows, 1 / chunk->S, w->F_t, C);
    gemm(s->features, C, rows, rows_of(w->H, ld_rows), w->F_t, C, 1, w->dkeys_t, w->dkeys_t, C);
    gemm(s->features, C, n, transposed(keys, s->ld), w->M, C, 1, w->dkeys_t, w->dkeys_t, C);
}

/* dkeys and dbeta of a chunk, from H, gamma and c at its end. */
static void chunk_gradients(const ReadoutSequence *s, const NormedReadoutScratch *w, const NormedReadoutChunk *chunk,
                            real *dkeys, real *dbeta)
{
    const size_t ld_rows = w->totals->ld_rows, rows = chunk->rows, n = chunk->count;
    const real *keys = s->keys + chunk->start * s->ld, *o = w->o + chunk->start * ld_rows;
    multiply_keys(s, w, keys, n);
    memset(w->M, 0, C * C * sizeof(real));
    gemm(n, rows, s->features, rows_of(keys, s->ld), w->H, ld_rows, 0, NULL, w->P, ld_rows);
    scale_rows(n, rows, 1 / chunk->S, w->P, ld_rows);
    for (size_t t = n; t-- > 0;) {
        const NormedReadoutToken *token = w->tokens + chunk->start + t;
        const real beta = s->beta[chunk->start + t];
        real *x = w->P + t * ld_rows;
        combine(rows, t + 1, n, w->gram + t, w->P, ld_rows, 1, x);
        dbeta[t] = backward_token(w->totals, token, rows, beta, o + t * ld_rows, x, w->M + t * C + t);
        write_difference(rows, token, beta, o + t * ld_rows, w->F + t * ld_rows);
    }
    key_gradients(s, w, chunk, keys);
    transpose(s->features, n, w->dkeys_t, C, dkeys, s->ld);
}

/* H at the chunk's start. 0 in the rows that were assigned there, because what they held before had faded. */
static void state_backward(const ReadoutSequence *s, const NormedReadoutScratch *w, const NormedReadoutChunk *chunk)
{
    const size_t ld_rows = w->totals->ld_rows;
    const real *keys = s->keys + chunk->start * s->ld;
    gemm(s->features, chunk->rows, chunk->count, transposed(keys, s->ld), w->P, ld_rows, 1 / chunk->S, w->H, w->H,
         ld_rows);
    for (size_t i = 0; i < s->features; i++)
        for (size_t j = 0; j < chunk->n_assigned; j++)
            w->H[i * ld_rows + w->assigned[chunk->first_assigned + j]] = 0;
}

/* c = <dL/dW, W> at the chunk's end. If c were only updated token by token, its rounding errors would accumulate. */
static void recompute_c(const ReadoutSequence *s, const NormedReadoutScratch *w, const NormedReadoutChunk *chunk)
{
    const size_t ld_rows = w->totals->ld_rows;
    const real *W = w->W + (size_t)(chunk - w->chunks + 1) * s->ld * ld_rows;
    const real gamma = (real)w->totals->gamma;
    double c = 0;
    for (size_t i = 0; i < s->features; i++) {
        vec sum = {0};
        for (size_t r = 0; r < chunk->rows; r += FWM_LANES) {
            const vec W_r = vec_load(W + i * ld_rows + r);
            sum += (vec_load(w->H + i * ld_rows + r) + gamma * W_r) * W_r;
        }
        c += vec_sum(sum);
    }
    w->totals->c = c;
}

static TokenRange backward_tile(const ReadoutSequence *s, void *scratch, size_t tile, real *dkeys, real *dbeta)
{
    const NormedReadoutScratch w = scratch_at(s, scratch);
    const NormedReadoutChunk *chunk = w.chunks + w.totals->n_chunks - 1 - tile;
    NormedReadoutTotals *totals = w.totals;
    if (totals->gone < 0) {
        memset(dkeys, 0, chunk->count * s->ld * sizeof(real));
        memset(dbeta, 0, chunk->count * sizeof(real));
    } else {
        if (tile > 0)
            recompute_c(s, &w, chunk);
        chunk_gradients(s, &w, chunk, dkeys, dbeta);
        state_backward(s, &w, chunk);
        if (fabs(totals->gamma) < totals->gone && fabs(totals->c) < totals->gone &&
            largest(s, &w, chunk->rows) < totals->gone)
            totals->gone = -1;
    }
    return (TokenRange){chunk->start, chunk->count};
}

/* dq = draw W_L */
static void backward_end(const ReadoutSequence *s, void *scratch, real *dquery)
{
    const NormedReadoutScratch w = scratch_at(s, scratch);
    const size_t ld_rows = w.totals->ld_rows;
    const real *W = w.W + w.totals->n_chunks * s->ld * ld_rows;
    for (size_t i = 0; i < s->ld; i++)
        dquery[i] = i < s->features ? dot(rows_at_end(&w), W + i * ld_rows, w.draw) : 0;
}

static void answer(const ReadoutSequence *s, void *scratch, const real *queries, size_t ld_queries, real *y)
{
    const NormedReadoutScratch w = begin_scratch(s, scratch);
    const real *W = run_chunks(s, &w);
    memset(y, 0, s->n_values * ld_queries * sizeof(real));
    /* NaN if a query is not finite; one row suffices, because the layer norm spreads its NaN to all */
    for (size_t i = 0; i < s->features && s->n_values; i++)
        add_scaled(ld_queries, 0, queries + i * ld_queries, y);
    for (size_t n = 0; n < s->n_values; n++)
        if (w.row_of[n] >= 0)
            gemm(1, ld_queries, s->features, transposed(W + w.row_of[n], w.totals->ld_rows), queries, ld_queries, 0,
                 NULL, y + n * ld_queries, ld_queries);
    for (size_t c = 0; c < ld_queries; c++)
        layer_norm_forward(s->n_values, y + c, y + c, ld_queries);
}

const Readout FWM_NAME(readout_fwm) = {
    .info = {.name = "fwm",
             .function = "fwm_rule",
             .uses_map = 1,
             .uses_beta = 1,
             .summary = "delta rule with the memory kept at norm 1, layer norm on the read-out"},
    .scratch = scratch_bytes,
    .forward = forward,
    .backward_begin = backward_begin,
    .backward_tile = backward_tile,
    .backward_end = backward_end,
    .answer = answer,
};
