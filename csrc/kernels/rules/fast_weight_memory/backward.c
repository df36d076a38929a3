/* The backward of fast_weight_memory. The forward (fast_weight_memory.c):
 *
 *     r_t = S_{t-1}^T k_t,   d_t = v_t - r_t,   S~_t = S_{t-1} + beta_t k_t d_t^T
 *     S_t = S~_t / s_t,   s_t = max(1, |S~_t|_F),   o_t = S_t^T q_t                     q scaled
 *
 * Let dS_t hold all that happens from token t's reading on. It is kept as dS_t = H_t + gamma_t S_t with c_t = <dS_t,
 * S_t>; at the end H = dfinal_state and gamma = 0. Reading, with e_t = do_t for each query head of the state: dq_t =
 * S_t e_t,   H_t += q_t e_t^T,   c_t += e_t . S_t^T q_t = dq_t . q_t Through the division, where <dS, S~> = s c, and
 * the length of a clamped S~ has no influence: dS~_t = H_t / s_t + kappa S~_t,   kappa = (gamma_t - c_t) / s_t^2 if
 * clamped, else gamma_t Through the write, with kk = |k|^2: g = dS~_t^T k_t = y + kappa (r + beta kk d),   y = H_t^T
 * k_t / s_t dv_t = beta g,   dbeta_t = d . g,   eta_t = beta (kappa d - g) H_{t-1} = H_t / s_t + k_t eta_t^T,
 * gamma_{t-1} = kappa,   c_{t-1} = (clamped ? 0 : c_t) - beta g . v dk_t = H_t w_t + kappa beta^2 |d|^2 k_t + S_{t-1}
 * eta_t,   w = beta d / s In a chunk of n tokens, with fade(a, b) = 1 / (s_{a+1} .. s_b) and H_n without the reading of
 * token n: H_t = fade(t, n) H_n + sum_{j > t} fade(t, j-1) k_j eta_j^T + sum_{j >= t} fade(t, j) q_j e_j^T S_t =
 * fade(0, t) S_0 + sum_{j <= t} fade(j, t) k_j w_j^T Put in, y_t follows for t from the last token to the first from
 * one product K H_n and Gram matrices, and dq_t = fade(0, t) S_0 e_t + sum_{j <= t} fade(j, t) (w_j . e_t) k_j dk_t =
 * fade(t, n) H_n w_t + fade(0, t-1) S_0 eta_t + kappa beta^2 |d|^2 k_t
 *            + sum_{j > t} fade(t, j-1) (eta_j . w_t) k_j + sum_{j < t} fade(j, t-1) (w_j . eta_t) k_j
 *            + sum_{j >= t} fade(t, j) (e_j . w_t) q_j
 *
 * c must not keep its rounding errors, which would not fade while H does: it is summed anew at every chunk's end.
 *
 * Saved: nothing but the inputs. Made again: states at two levels. n chunks are cut into about sqrt(n) segments; the
 * state before each segment is kept from a first pass, and of the segment at hand all states between chunks, all r and
 * all s. */
#include <string.h>

#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/rules/fast_weight_memory/fast_weight_memory.h"
#include "kernels/rules/tokens.h"
#include "runtime/threads.h"

/* m is the chunks of a segment; R as in Chunk. */
typedef struct {
    Chunk chunk;
    size_t state, segment;   /* numbers of a state; chunks of a segment */
    real *checkpoints;       /* segments x state: before each segment */
    real *states;            /* (m + 1) x state: before each chunk of the segment at hand, and behind the last */
    real *r, *s;             /* m C x ld_v, m C */
    real *H;                 /* state */
    real *e, *e_scaled;      /* C R x ld_v: do; the same times fade(0, t) */
    real *eta, *eta_scaled;  /* C x ld_v, eta at first y; the same times fade(0, t-1) */
    real *dv;                /* C x ld_v */
    real *e_t, *eta_t, *w_t; /* V x C R, V x C, V x C: transposed */
    real *e_w, *eta_w;       /* C R x C: e_i . w_j; C x C: eta_t . w_j */
    real *dk, *dq;           /* C x ld_k, C R x ld_k */
    real *dk_t, *dq_t;       /* K x C, K x C R: transposed */
    real *row;               /* ld_k */
    double gamma, c;
    double k_on_itself[C]; /* kappa beta^2 |d|^2 */
} Scratch;

/* Chunks of a segment: the smallest m with m^2 at least as many as there are. */
static size_t chunks_of_segment(size_t chunks)
{
    size_t m = 1;
    while (m * m < chunks)
        m++;
    return m;
}

static Scratch take_scratch(const Head *h, Arena *arena)
{
    Scratch w = {.chunk = take_chunk(h, arena)};
    const Chunk *c = &w.chunk;
    const size_t readers = C * h->R, chunks = fwm_tiles(h->T, c->length), by_value = c->ld_v * sizeof(real);
    w.state = h->K * c->ld_v;
    w.segment = chunks_of_segment(chunks);
    w.checkpoints = take(arena, (fwm_tiles(chunks, w.segment) + 1) * w.state);
    w.states = take(arena, (w.segment + 1) * w.state);
    w.r = take_bytes(arena, w.segment * c->length * by_value);
    w.s = take(arena, w.segment * c->length);
    w.H = take(arena, w.state);
    w.e = take_bytes(arena, readers * by_value);
    w.e_scaled = take_bytes(arena, readers * by_value);
    w.eta = take_bytes(arena, C * by_value);
    w.eta_scaled = take_bytes(arena, C * by_value);
    w.dv = take_bytes(arena, C * by_value);
    w.e_t = take(arena, h->V * readers);
    w.eta_t = take(arena, h->V * C);
    w.w_t = take(arena, h->V * C);
    w.e_w = take(arena, readers * C);
    w.eta_w = take(arena, C * C);
    w.dk = take(arena, C * c->ld_k);
    w.dq = take(arena, readers * c->ld_k);
    w.dk_t = take(arena, h->K * C);
    w.dq_t = take(arena, h->K * readers);
    w.row = take(arena, c->ld_k);
    return w;
}

/* A loaded chunk with its queries: e = do, d = v - r. The padding of dk and dq is multiplied with that of keys and
 * queries. */
static void begin_chunk(const Head *h, Scratch *w, size_t start, const real *r)
{
    Chunk *c = &w->chunk;
    load_chunk(h, c, start, true);
    for (size_t i = 0; i < c->n * h->R; i++)
        load_row(h->V, c->ld_v, token(h->dout, start + i / h->R) + i % h->R * h->V, w->e + i * c->ld_v);
    memset(w->dk, 0, c->n * c->ld_k * sizeof(real));
    memset(w->dq, 0, c->n * h->R * c->ld_k * sizeof(real));
    add_scaled(c->n * c->ld_v, -1, r, c->d);
}

/* A token of the plain recurrence; H is all of dS there. S0 and S1 are the states before and after it. */
static void token_gradients(const Head *h, Scratch *w, const real *S0, const real *S1, real s)
{
    const Chunk *c = &w->chunk;
    const size_t ld = c->ld_v;
    const real beta = *token(h->beta, c->start);
    real *g = w->dv;
    for (size_t q = 0; q < h->R; q++)
        for (size_t i = 0; i < h->K; i++) {
            w->dq[q * c->ld_k + i] = dot(ld, S1 + i * ld, w->e + q * ld);
            add_scaled(ld, c->q[q * c->ld_k + i], w->e + q * ld, w->H + i * ld);
        }
    if (s != 1) { /* dS~ = (dS - <dS, S> S) / s */
        add_scaled(w->state, -(real)inner(h->K, ld, w->H, S1), S1, w->H);
        scale(w->state, 1 / s, w->H, w->H);
    }
    memset(g, 0, ld * sizeof(real));
    for (size_t i = 0; i < h->K; i++)
        add_scaled(ld, c->k[i], w->H + i * ld, g);
    *token(h->dbeta, c->start) = dot(ld, c->d, g);
    for (size_t i = 0; i < h->K; i++) {
        w->dk[i] = beta * (dot(ld, w->H + i * ld, c->d) - dot(ld, S0 + i * ld, g));
        add_scaled(ld, -beta * c->k[i], g, w->H + i * ld);
    }
    scale(ld, beta, g, w->dv);
}

/* fade and w, from the s of the forward; Gram matrices and transposes. */
static void prepare_chunk(const Head *h, Scratch *w, const real *s)
{
    const Chunk *c = &w->chunk;
    const size_t R = h->R, ld = c->ld_v;
    begin_fading(c);
    for (size_t t = 0; t < c->n; t++) {
        fade_states(c, t, s[t]);
        scale(ld, *token(h->beta, c->start + t) / s[t], c->d + t * ld, c->w + t * ld);
    }
    for (size_t i = 0; i < c->n * R; i++)
        scale(ld, faded(c, 0, i / R + 1), w->e + i * ld, w->e_scaled + i * ld);
    multiply_keys(h, c);
    transpose(c->n, h->V, c->w, ld, w->w_t, C);
    gemm(c->n * R, C, h->K, rows_of(c->q, c->ld_k), c->k_t, C, 0, NULL, c->qk, C);
    gemm(c->n * R, C, h->V, rows_of(w->e, ld), w->w_t, C, 0, NULL, w->e_w, C);
}

/* dq_t = fade(0, t) S_0 e_t + sum_{j <= t} fade(j, t) (w_j . e_t) k_j */
static void query_gradients(const Head *h, Scratch *w, const real *S0)
{
    const Chunk *c = &w->chunk;
    const size_t R = h->R, n = c->n * R, readers = C * R;
    real weights[C];
    transpose(n, h->V, w->e_scaled, c->ld_v, w->e_t, readers);
    gemm(h->K, readers, h->V, rows_of(S0, c->ld_v), w->e_t, readers, 0, NULL, w->dq_t, readers);
    transpose(h->K, n, w->dq_t, readers, w->dq, c->ld_k);
    for (size_t i = 0; i < n; i++) {
        const size_t t = i / R;
        for (size_t j = 0; j <= t; j++)
            weights[j] = faded(c, j + 1, t + 1) * w->e_w[i * C + j];
        combine(c->ld_k, 1, t + 1, weights, c->k, w->dq + i * c->ld_k);
    }
}

/* y_t, whose row in eta holds H_n^T k_t:
 * fade(t-1, n) H_n^T k_t + sum_{j > t} fade(t-1, j-1) (k_j . k_t) eta_j + sum_{j >= t} fade(t-1, j) (q_j . k_t) e_j */
static void complete_y(const Head *h, Scratch *w, size_t t)
{
    const Chunk *c = &w->chunk;
    const size_t R = h->R, n = c->n, ld = c->ld_v;
    real weights[C];
    for (size_t j = t + 1; j < n; j++)
        weights[j - t - 1] = faded(c, t, j) * c->gram[t * C + j];
    combine(ld, faded(c, t, n), n - t - 1, weights, w->eta + (t + 1) * ld, w->eta + t * ld);
    for (size_t i = t * R; i < n * R; i++)
        add_scaled(ld, faded(c, t, i / R + 1) * c->qk[i * C + t], w->e + i * ld, w->eta + t * ld);
}

/* A token: y becomes eta; dv, dbeta, gamma and c. */
static void write_gradients(const Head *h, Scratch *w, size_t t, real s, const real *restrict r)
{
    const Chunk *c = &w->chunk;
    const real beta = *token(h->beta, c->start + t), kk = c->gram[t * C + t];
    const real *restrict d = c->d + t * c->ld_v;
    real *restrict eta = w->eta + t * c->ld_v, *restrict dv = w->dv + t * c->ld_v;
    for (size_t q = t * h->R; q < (t + 1) * h->R; q++)
        w->c += dot(c->ld_k, c->q + q * c->ld_k, w->dq + q * c->ld_k);
    const bool clamped = s != 1;
    const double kappa = clamped ? (w->gamma - w->c) / ((double)s * s) : w->gamma;
    const real on_r = (real)kappa, on_d = (real)kappa * beta * kk;
    vec d_g = {0}, r_g = {0}, d_d = {0};
    for (size_t i = 0; i < c->ld_v; i += FWM_LANES) {
        const vec d_i = vec_load(d + i), r_i = vec_load(r + i), g = vec_load(eta + i) + on_r * r_i + on_d * d_i;
        d_g += d_i * g;
        r_g += r_i * g;
        d_d += d_i * d_i;
        vec_store(dv + i, beta * g);
        vec_store(eta + i, beta * (on_r * d_i - g));
    }
    const real dbeta = vec_sum(d_g);
    *token(h->dbeta, c->start + t) = dbeta;
    w->k_on_itself[t] = kappa * beta * beta * vec_sum(d_d);
    w->gamma = kappa;
    w->c = (clamped ? 0 : w->c) - (double)beta * (dbeta + vec_sum(r_g));
}

/* dk_t, see above; S_0 eta_t and H_n w_t as products, w_t scaled in place. */
static void key_gradients(const Head *h, Scratch *w, const real *S0)
{
    const Chunk *c = &w->chunk;
    const size_t R = h->R, n = c->n, ld = c->ld_v;
    real weights[C];
    gemm(n, C, h->V, rows_of(w->eta, ld), w->w_t, C, 0, NULL, w->eta_w, C);
    for (size_t t = 0; t < n; t++) {
        scale(ld, faded(c, 0, t), w->eta + t * ld, w->eta_scaled + t * ld);
        scale(ld, faded(c, t + 1, n), c->w + t * ld, c->scaled + t * ld);
    }
    transpose(n, h->V, w->eta_scaled, ld, w->eta_t, C);
    transpose(n, h->V, c->scaled, ld, w->w_t, C);
    gemm(h->K, C, h->V, rows_of(S0, ld), w->eta_t, C, 0, NULL, w->dk_t, C);
    gemm(h->K, C, h->V, rows_of(w->H, ld), w->w_t, C, 1, w->dk_t, w->dk_t, C);
    transpose(h->K, n, w->dk_t, C, w->dk, c->ld_k);
    for (size_t t = 0; t < n; t++) {
        real *dk = w->dk + t * c->ld_k;
        for (size_t j = 0; j < n; j++)
            weights[j] = j > t   ? faded(c, t + 1, j) * w->eta_w[j * C + t]
                         : j < t ? faded(c, j + 1, t) * w->eta_w[t * C + j]
                                 : (real)w->k_on_itself[t];
        combine(c->ld_k, 1, n, weights, c->k, dk);
        for (size_t i = t * R; i < n * R; i++)
            add_scaled(c->ld_k, faded(c, t + 1, i / R + 1) * w->e_w[i * C + t], c->q + i * c->ld_k, dk);
    }
}

/* H_0 = fade(0, n) H_n + sum_j fade(0, j-1) k_j eta_j^T + sum_j fade(0, j) q_j e_j^T */
static void step_back(const Head *h, Scratch *w)
{
    const Chunk *c = &w->chunk;
    const size_t ld = c->ld_v;
    gemm(h->K, ld, c->n, transposed(c->k, c->ld_k), w->eta_scaled, ld, faded(c, 0, c->n), w->H, w->H, ld);
    gemm(h->K, ld, c->n * h->R, transposed(c->q, c->ld_k), w->e_scaled, ld, 1, w->H, w->H, ld);
}

static void chunk_gradients(const Head *h, Scratch *w, const real *S0, const real *S1, const real *r, const real *s)
{
    const Chunk *c = &w->chunk;
    prepare_chunk(h, w, s);
    query_gradients(h, w, S0);
    w->c = inner(h->K, c->ld_v, w->H, S1) + w->gamma * inner(h->K, c->ld_v, S1, S1);
    gemm(c->n, c->ld_v, h->K, rows_of(c->k, c->ld_k), w->H, c->ld_v, 0, NULL, w->eta, c->ld_v);
    for (size_t t = c->n; t-- > 0;) {
        complete_y(h, w, t);
        write_gradients(h, w, t, s[t], r + t * c->ld_v);
    }
    key_gradients(h, w, S0);
    step_back(h, w);
}

/* dq, dk and dv of a chunk, into the head's arrays */
static void store_gradients(const Head *h, const Scratch *w)
{
    const Chunk *c = &w->chunk;
    for (size_t t = 0; t < c->n; t++) {
        store_queries(h, c->start + t, c->ld_k, w->dq + t * h->R * c->ld_k, c->ld_k, w->row);
        store_key(h, c->start + t, c->ld_k, w->dk + t * c->ld_k, w->row);
        copy(h->V, w->dv + t * c->ld_v, token(h->dv, c->start + t));
    }
}

/* The states, r and s of a segment, from its checkpoint. */
static void run_segment(const Head *h, Scratch *w, size_t segment)
{
    Chunk *c = &w->chunk;
    const size_t tokens = w->segment * c->length, begin = segment * tokens, end = fwm_min(h->T, begin + tokens);
    real *S = w->states, *r = w->r, *s = w->s;
    memcpy(S, w->checkpoints + segment * w->state, w->state * sizeof(real));
    for (size_t start = begin; start < end; start += c->length) {
        load_chunk(h, c, start, false);
        write_tokens(h, c, S, S + w->state, r, s);
        S += w->state;
        r += c->n * c->ld_v;
        s += c->n;
    }
    memcpy(w->checkpoints + (segment + 1) * w->state, S, w->state * sizeof(real));
}

static void segment_gradients(const Head *h, Scratch *w, size_t segment)
{
    const Chunk *c = &w->chunk;
    const size_t chunks = fwm_tiles(h->T, c->length), first = segment * w->segment;
    for (size_t i = fwm_min(w->segment, chunks - first); i-- > 0;) {
        const real *S0 = w->states + i * w->state, *S1 = S0 + w->state;
        const real *r = w->r + i * c->length * c->ld_v, *s = w->s + i * c->length;
        begin_chunk(h, w, (first + i) * c->length, r);
        if (c->length == 1)
            token_gradients(h, w, S0, S1, *s);
        else
            chunk_gradients(h, w, S0, S1, r, s);
        store_gradients(h, w);
    }
}

static void backward_head(const Head *h, Scratch *w)
{
    const size_t ld = w->chunk.ld_v, segments = fwm_tiles(fwm_tiles(h->T, w->chunk.length), w->segment);
    load_columns(h->K, h->V, h->V, ld, h->initial_state, w->checkpoints);
    load_columns(h->K, h->V, h->V, ld, h->dfinal_state, w->H);
    w->gamma = 0;
    for (size_t i = 0; i < segments; i++)
        run_segment(h, w, i);
    for (size_t i = segments; i-- > 0;) {
        if (i + 1 < segments)
            run_segment(h, w, i);
        segment_gradients(h, w, i);
    }
    if (h->dinitial_state) { /* dS = H + gamma S */
        add_scaled(w->state, (real)w->gamma, w->checkpoints, w->H);
        store_columns(h->K, h->V, h->V, ld, w->H, h->dinitial_state);
    }
}

static size_t scratch_of_thread(const FwmRuleCall *m)
{
    const Head h = longest_head(m);
    Arena arena = {0};
    take_scratch(&h, &arena);
    return arena.next;
}

size_t fast_weight_memory_backward_scratch(const void *call, int threads)
{
    const FwmRuleCall *m = call;
    return scratch_of_thread(m) * (size_t)threads;
}

/* A key head: its value heads one after the other, so that dk and dq are summed in a fixed order. */
static void backward_task(void *context, size_t index, int thread)
{
    const Work *work = context;
    const FwmRuleCall *m = work->m;
    const size_t sequence = index / m->H, value_heads = m->HV / m->H, first = index % m->H * value_heads;
    for (size_t hv = first; hv < first + value_heads; hv++) {
        const Head h = head_of(m, sequence, hv);
        Arena arena = arena_at(work->scratch + (size_t)thread * work->bytes);
        Scratch w = take_scratch(&h, &arena);
        backward_head(&h, &w);
    }
}

void fast_weight_memory_backward(const void *call, int threads, void *scratch)
{
    const FwmRuleCall *m = call;
    Work work = {m, scratch, scratch_of_thread(m)};
    fwm_parallel_for(threads, m->n_sequences * m->H, backward_task, &work);
}
