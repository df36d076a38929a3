/* The rules at one token: see tokens.h. Loops have no vectors of our own, for K and V are as they come. */
#include "kernels/memory/tokens.h"

#include "kernels/base/vector.h"
#include "kernels/base/vmath.h"
#include "kernels/memory/qk_norm.h"

bool erases_of(const FwmMemory *m)
{
    return memory_rules[m->rule]->info.strength != FWM_NO_STRENGTH;
}

/* Row i of token t, normalised. */
static void load_normalised(const Head *h, Tokens from, size_t t, size_t i, size_t ld, real *x)
{
    load_row(h->K, ld, token(from, t) + i * h->K, x);
    qk_norm_forward(h->m->qk_norm, 1, h->K, ld, x);
}

void load_key(const Head *h, size_t t, size_t ld, real *k)
{
    load_normalised(h, h->k, t, 0, ld, k);
}

void load_queries(const Head *h, size_t t, size_t ld, real *q, size_t q_stride)
{
    for (size_t r = 0; r < h->R; r++, q += q_stride) {
        load_normalised(h, h->q, t, r, ld, q);
        scale(ld, (real)h->m->scale, q, q);
    }
}

void load_token(const Head *h, size_t t, size_t ld, real *restrict k, real *restrict e, real *restrict q, size_t q_stride)
{
    load_key(h, t, ld, k);
    if (h->b.data) {
        const real *restrict b = token(h->b, t);
        load_row(h->K, ld, k, e);
        for (size_t i = 0; i < h->K; i++)
            e[i] *= b[i];
    } else if (h->beta.data) {
        scale(ld, *token(h->beta, t), k, e);
    }
    if (q)
        load_queries(h, t, ld, q, q_stride);
}

void load_gate(const Head *h, size_t t, size_t ld, real *restrict g)
{
    if (h->m->gate == FWM_SCALAR_GATE)
        *g = *token(h->g, t);
    else
        load_row(h->K, ld, token(h->g, t), g);
}

void exponentials(size_t n, real *restrict x)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        x[i] = exp_real(x[i]);
}

void load_value(const Head *h, size_t t, size_t j0, size_t n, real *restrict u)
{
    const real *restrict v = token(h->v, t) + j0;
    if (h->w.data) {
        const real *restrict w = token(h->w, t) + j0;
        for (size_t j = 0; j < n; j++)
            u[j] = w[j] * v[j];
        return;
    }
    const real beta = h->beta.data ? *token(h->beta, t) : 1;
    for (size_t j = 0; j < n; j++)
        u[j] = beta * v[j];
}

real store_value(const Head *h, size_t t, size_t j0, size_t n, const real *restrict du)
{
    const real *restrict v = token(h->v, t) + j0;
    real *restrict dv = token(h->dv, t) + j0;
    if (h->w.data) {
        const real *restrict w = token(h->w, t) + j0;
        real *restrict dw = token(h->dw, t) + j0;
        for (size_t j = 0; j < n; j++) {
            dv[j] = w[j] * du[j];
            dw[j] = v[j] * du[j];
        }
        return 0;
    }
    const real beta = h->beta.data ? *token(h->beta, t) : 1;
    real dbeta = 0;
#pragma omp simd reduction(+ : dbeta)
    for (size_t j = 0; j < n; j++) {
        dv[j] = beta * du[j];
        dbeta += v[j] * du[j];
    }
    return dbeta;
}

/* Row i of token t: dx behind the normalisation, to what is before it. */
static void store_normalised(const Head *h, Tokens x, Tokens to, size_t t, size_t i, size_t ld, bool first, real *dx, real *row)
{
    load_row(h->K, ld, token(x, t) + i * h->K, row);
    qk_norm_backward(h->m->qk_norm, h->K, ld, row, dx);
    give(h->K, dx, first, token(to, t) + i * h->K);
}

void store_key(const Head *h, size_t t, size_t ld, real *dk, real *row)
{
    store_normalised(h, h->k, h->dk, t, 0, ld, h->first_of_key, dk, row);
}

void store_queries(const Head *h, size_t t, size_t ld, real *dq, size_t q_stride, real *row)
{
    for (size_t r = 0; r < h->R; r++, dq += q_stride) {
        scale(ld, (real)h->m->scale, dq, dq);
        store_normalised(h, h->q, h->dq, t, r, ld, h->first_of_query, dq, row);
    }
}

void store_token(const Head *h, size_t t, size_t ld, const real *restrict k, real dbeta, real *restrict dk, const real *restrict de,
                 real *restrict dq, size_t q_stride, real *restrict row)
{
    const size_t K = h->K;
    if (h->b.data) {
        const real *restrict b = token(h->b, t);
        real *restrict db = token(h->db, t);
        for (size_t i = 0; i < K; i++) {
            db[i] = de[i] * k[i];
            dk[i] += b[i] * de[i];
        }
    } else if (h->beta.data) {
        const real beta = *token(h->beta, t);
        real along = 0;
#pragma omp simd reduction(+ : along)
        for (size_t i = 0; i < K; i++) {
            along += de[i] * k[i];
            dk[i] += beta * de[i];
        }
        *token(h->dbeta, t) = dbeta + along;
    }
    store_key(h, t, ld, dk, row);
    store_queries(h, t, ld, dq, q_stride, row);
}
