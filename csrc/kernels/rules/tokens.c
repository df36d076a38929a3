/* The rules at one token: see tokens.h. The loops use no vec, because K and V need not be multiples of a vector's
 * lanes.
 *
 * Derived in docs/mathematics/rules.md. */
#include "kernels/rules/tokens.h"

#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"
#include "kernels/rules/qk_norm.h"

bool rule_erases(const FwmRuleCall *call)
{
    return rules[call->rule]->info.strength != FWM_NO_STRENGTH;
}

/* Row i of n tokens from t0 on. */
static void read_rows(const ValueHead *h, Tokens from, size_t t0, size_t n, size_t i, size_t ld, real *x,
                      size_t per_token)
{
    for (size_t t = 0; t < n; t++)
        load_numbers(from, t0 + t, i * h->K, h->K, ld, x + t * per_token);
}

void read_keys(const ValueHead *h, size_t t0, size_t n, size_t ld, real *k)
{
    read_rows(h, h->k, t0, n, 0, ld, k, ld);
}

void read_queries(const ValueHead *h, size_t t0, size_t n, size_t ld, real *q, size_t per_token, size_t per_query)
{
    for (size_t r = 0; r < h->R; r++)
        read_rows(h, h->q, t0, n, r, ld, q + r * per_query, per_token);
}

void normalise_keys(const ValueHead *h, size_t n, size_t ld, real *k, real *factors)
{
    qk_norm_forward(h->call->qk_norm, 1, n, ld, k, ld, factors);
}

void normalise_queries(const ValueHead *h, size_t n, size_t ld, real *q, size_t per_token, size_t per_query,
                       real *factors)
{
    for (size_t r = 0; r < h->R; r++)
        qk_norm_forward(h->call->qk_norm, (real)h->call->scale, n, ld, q + r * per_query, per_token,
                        factors ? factors + r * n : NULL);
}

/* All rows are read before the first is normalised: the rows of a head lie far apart in memory, and so their cache
 * misses overlap. */
void load_keys(const ValueHead *h, size_t t0, size_t n, size_t ld, real *k, real *factors)
{
    read_keys(h, t0, n, ld, k);
    normalise_keys(h, n, ld, k, factors);
}

void load_queries(const ValueHead *h, size_t t0, size_t n, size_t ld, real *q, size_t per_token, size_t per_query,
                  real *factors)
{
    read_queries(h, t0, n, ld, q, per_token, per_query);
    normalise_queries(h, n, ld, q, per_token, per_query, factors);
}

void load_erase_keys(const ValueHead *h, size_t t0, size_t n, size_t ld, const real *restrict k, real *restrict e)
{
    for (size_t t = 0; t < n && h->b.data; t++)
        load_numbers(h->b, t0 + t, 0, h->K, ld, e + t * ld);
    for (size_t t = 0; t < n; t++, k += ld, e += ld) {
        if (h->b.data)
            for (size_t i = 0; i < ld; i++)
                e[i] *= k[i];
        else if (h->beta.data)
            scale(ld, number_of(h->erase.data ? h->erase : h->beta, t0 + t, 0), k, e);
    }
}

void load_strengths(const ValueHead *h, size_t t0, size_t n, real *strength)
{
    for (size_t t = 0; t < n; t++)
        strength[t] = h->b.data ? 1 : number_of(h->erase.data ? h->erase : h->beta, t0 + t, 0);
}

void load_gates(const ValueHead *h, size_t t0, size_t n, size_t ld, real *restrict g)
{
    for (size_t t = 0; t < n; t++)
        if (h->call->gate == FWM_SCALAR_GATE)
            g[t] = number_of(h->g, t0 + t, 0);
        else
            load_numbers(h->g, t0 + t, 0, h->K, ld, g + t * ld);
}

void load_decays(const ValueHead *h, size_t t, size_t ld, real *restrict a, real *restrict rest,
                 lane_number *restrict one_more)
{
    const size_t n = h->call->gate == FWM_SCALAR_GATE ? 1 : ld;
    load_gates(h, t, 1, ld, a);
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        one_more[i] = exp_in_two(a[i], &rest[i]);
        a[i] = rest[i] - (real)one_more[i];
    }
    for (size_t i = n; i < ld; i++) {
        a[i] = a[0];
        rest[i] = rest[0];
        one_more[i] = one_more[0];
    }
}

ALWAYS_INLINE void load_columns_of_value(const ValueHead *h, size_t t, size_t j0, size_t n, real *restrict u)
{
    const Tokens v = tokens_from(h->v, t, j0);
    if (h->w.data) {
        const Tokens w = tokens_from(h->w, t, j0);
        read_numbers(v.numbers, n, v.data, u);
        multiply_numbers(w.numbers, n, w.data, u);
        return;
    }
    scale_numbers(v.numbers, n, h->beta.data ? number_of(h->beta, t, 0) : 1, v.data, u);
}

void load_value(const ValueHead *h, size_t t, size_t j0, size_t n, real *u)
{
    load_columns_of_value(h, t, j0, n, u);
}

void load_values(const ValueHead *h, size_t t0, size_t n, size_t j0, size_t columns, size_t ld, real *u)
{
    for (size_t t = 0; t < n; t++)
        load_columns_of_value(h, t0 + t, j0, columns, u + t * ld);
}

/* dv = w du and dw = v du, element by element. */
static void store_value_of_products(const ValueHead *h, size_t t, size_t j0, size_t columns, const real *restrict du)
{
    const real *restrict v = token(h->v, t) + j0, *restrict w = token(h->w, t) + j0;
    real *restrict dv = token(h->dv, t) + j0, *restrict dw = token(h->dw, t) + j0;
    for (size_t j = 0; j < columns; j++) {
        dv[j] = w[j] * du[j];
        dw[j] = v[j] * du[j];
    }
}

/* dv = beta du; returns v . du, but the sum over whole vectors, which is left in `sum`. */
static inline real store_multiple(size_t columns, real beta, const real *restrict v, const real *restrict du,
                                  real *restrict dv, vec *sum)
{
    vec along = {0};
    real rest = 0;
    size_t j = 0;
    for (; j + FWM_LANES <= columns; j += FWM_LANES) {
        const vec d = vec_load(du + j);
        vec_store(dv + j, beta * d);
        along += vec_load(v + j) * d;
    }
    for (; j < columns; j++) {
        dv[j] = beta * du[j];
        rest += v[j] * du[j];
    }
    *sum = along;
    return rest;
}

void store_values(const ValueHead *h, size_t t0, size_t n, size_t j0, size_t columns, size_t ld, const real *du,
                  real *dbeta)
{
    for (size_t t = 0; t < n && h->w.data; t++, du += ld) {
        store_value_of_products(h, t0 + t, j0, columns, du);
        dbeta[t] = 0;
    }
    for (size_t first = 0; first < n && !h->w.data; first += FWM_LANES) {
        vec sums[FWM_LANES] = {{0}};
        real rest[FWM_LANES] = {0};
        const size_t rows = fwm_min(FWM_LANES, n - first);
        for (size_t i = 0; i < rows; i++, du += ld) {
            const size_t t = t0 + first + i;
            const real beta = h->beta.data ? *token(h->beta, t) : 1;
            rest[i] = store_multiple(columns, beta, token(h->v, t) + j0, du, token(h->dv, t) + j0, &sums[i]);
        }
        const vec all = vec_sums(sums) + vec_load(rest);
        for (size_t i = 0; i < rows; i++)
            dbeta[first + i] = all[i];
    }
}

/* Stores the gradients of row i of n tokens, given those of the rows that were loaded, a times normalised. */
static void store_normalised(const ValueHead *h, Tokens to, size_t t0, size_t n, size_t i, real a, size_t ld,
                             const LoadedRows *y, bool first, real *dy)
{
    const size_t at = i * y->per_query;
    qk_norm_backward(h->call->qk_norm, a, n, h->K, ld, y->rows + at, y->factors + i * n, y->per_token, dy + at);
    for (size_t t = 0; t < n; t++)
        accumulate(h->K, dy + at + t * y->per_token, first, token(to, t0 + t) + i * h->K);
}

void store_keys(const ValueHead *h, size_t t0, size_t n, size_t ld, const LoadedRows *k, real *dk)
{
    store_normalised(h, h->dk, t0, n, 0, 1, ld, k, h->first_of_key, dk);
}

void store_queries(const ValueHead *h, size_t t0, size_t n, size_t ld, const LoadedRows *q, real *dq)
{
    for (size_t r = 0; r < h->R; r++)
        store_normalised(h, h->dq, t0, n, r, (real)h->call->scale, ld, q, h->first_of_query, dq);
}

/* e = b k, element by element. */
static void store_products(const ValueHead *h, size_t t0, size_t n, size_t ld, const real *restrict k,
                           real *restrict dk, const real *restrict de)
{
    for (size_t t = 0; t < n; t++, k += ld, dk += ld, de += ld) {
        const real *restrict b = token(h->b, t0 + t);
        real *restrict db = token(h->db, t0 + t);
        for (size_t i = 0; i < h->K; i++) {
            db[i] = de[i] * k[i];
            dk[i] += b[i] * de[i];
        }
    }
}

/* e = strength k, of at most FWM_LANES tokens. */
static void store_multiples(const ValueHead *h, size_t t0, size_t n, size_t ld, const real *k, const real *dbeta,
                            real *dk, const real *de)
{
    real along[FWM_LANES];
    dots(n, ld, de, k, ld, along);
    for (size_t t = 0; t < n; t++) {
        add_scaled(ld, number_of(h->erase.data ? h->erase : h->beta, t0 + t, 0), de + t * ld, dk + t * ld);
        *token(h->dbeta, t0 + t) = h->erase.data ? dbeta[t] : dbeta[t] + along[t];
        if (h->erase.data)
            *token(h->derase, t0 + t) = along[t];
    }
}

void store_tokens(const ValueHead *h, size_t t0, size_t n, size_t ld, const LoadedRows *k, const LoadedRows *q,
                  const real *dbeta, real *dk, const real *de, real *dq)
{
    if (h->b.data)
        store_products(h, t0, n, ld, k->rows, dk, de);
    for (size_t t = 0; t < n && !h->b.data && h->beta.data; t += FWM_LANES)
        store_multiples(h, t0 + t, fwm_min(FWM_LANES, n - t), ld, k->rows + t * ld, dbeta + t, dk + t * ld,
                        de + t * ld);
    store_keys(h, t0, n, ld, k, dk);
    store_queries(h, t0, n, ld, q, dq);
}
