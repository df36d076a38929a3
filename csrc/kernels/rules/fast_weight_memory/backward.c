/* The backward of fast_weight_memory. The forward (forward.c):
 *
 *     r_t = S_{t-1}^T k_t,   d_t = v_t - r_t,   S~_t = S_{t-1} + beta_t k_t d_t^T
 *     S_t = S~_t / s_t,   s_t = max(1, |S~_t|_F),   o_t = S_t^T q_t                     q scaled
 *
 * Let dS_t be the gradient of S_t from token t's reading on. It is kept in two parts,
 *
 *     dS_t = H_t + gamma_t S_t,   c_t = <dS_t, S_t>;   at the end H = dfinal_state and gamma = 0
 *
 * Reading, with e_t = do_t for each query head of the state:
 *
 *     dq_t = S_t e_t,   H_t += q_t e_t^T,   c_t += e_t . S_t^T q_t = dq_t . q_t
 *
 * Through the division, where <dS, S~> = s c, and the length of a clamped S~ has no influence:
 *
 *     dS~_t = H_t / s_t + kappa S~_t,   kappa = (gamma_t - c_t) / s_t^2 if clamped, else gamma_t
 *
 * Through the write, with kk = |k|^2:
 *
 *     g = dS~_t^T k_t = y + kappa (r + beta kk d),   y = H_t^T k_t / s_t
 *     dv_t = beta g,   dbeta_t = d . g,   eta_t = beta (kappa d - g)
 *     H_{t-1} = H_t / s_t + k_t eta_t^T,   gamma_{t-1} = kappa,   c_{t-1} = (clamped ? 0 : c_t) - beta g . v
 *     dk_t = H_t w_t + kappa beta^2 |d|^2 k_t + S_{t-1} eta_t,   w = beta d / s
 *
 * In a chunk of n tokens, with fade(a, b) = 1 / (s_{a+1} .. s_b) and H_n without the reading of token n:
 *
 *     H_t = fade(t, n) H_n + sum_{j > t} fade(t, j-1) k_j eta_j^T + sum_{j >= t} fade(t, j) q_j e_j^T
 *     S_t = fade(0, t) S_0 + sum_{j <= t} fade(j, t) k_j w_j^T
 *
 * Inserted above, y_t follows, from the last token to the first, from one product K H_n and Gram matrices, and
 *
 *     dq_t = fade(0, t) S_0 e_t + sum_{j <= t} fade(j, t) (w_j . e_t) k_j
 *     dk_t = fade(t, n) H_n w_t + fade(0, t-1) S_0 eta_t + kappa beta^2 |d|^2 k_t
 *            + sum_{j > t} fade(t, j-1) (eta_j . w_t) k_j + sum_{j < t} fade(j, t-1) (w_j . eta_t) k_j
 *            + sum_{j >= t} fade(t, j) (e_j . w_t) q_j
 *
 * c must not keep its rounding errors, which would not fade while H does: it is summed anew at every chunk's end.
 *
 * Saved: only the inputs. Recomputed: states at two levels. n chunks are cut into about sqrt(n) segments; a first pass
 * leaves a checkpoint, the state, before each segment; of the current segment all states between chunks, all r and all
 * s are recomputed.
 *
 * Derived in docs/mathematics/fast_weight_memory.md. */
#include "kernels/rules/fast_weight_memory/fast_weight_memory.h"

#include <string.h>

#include "kernels/base/gemm.h"
#include "kernels/base/transpose.h"
#include "kernels/rules/tokens.h"
#include "runtime/threads.h"

/* Below, m is the number of chunks of a segment, and R that of query heads of a state. */
typedef struct {
    NormedChunk chunk;
    size_t state, segment;   /* numbers of a state; chunks of a segment */
    real *checkpoints;       /* segments x state: before each segment */
    real *states;            /* (m + 1) x state: before each chunk of the current segment, and after the last */
    real *r, *s;             /* m C x ld_v, m C */
    real *H;                 /* state */
    real *e, *e_scaled;      /* C R x ld_v: do; the same times fade(0, t) */
    real *eta, *eta_scaled;  /* C x ld_v, eta at first y; the same times fade(0, t-1) */
    real *dv;                /* C x ld_v */
    real *e_t, *eta_t, *w_t; /* V x C R, V x C, V x C: transposed */
    real *e_w, *eta_w;       /* C R x C: e_i . w_j; C x C: eta_t . w_j */
    real *dk, *dq;           /* C x ld_k, C R x ld_k */
    real *dk_t, *dq_t;       /* K x C, K x C R: transposed */
    double gamma, c;
    double k_on_itself[CHUNK]; /* kappa beta^2 |d|^2 */
} NormedBackwardScratch;

/* Chunks of a segment: the smallest m with m^2 at least as many as there are. */
static size_t chunks_of_segment(size_t chunks)
{
    size_t m = 1;
    while (m * m < chunks)
        m++;
    return m;
}

static NormedBackwardScratch take_scratch(const ValueHead *h, Arena *arena)
{
    NormedBackwardScratch w = {.chunk = take_normed_chunk(h, arena)};
    const NormedChunk *c = &w.chunk;
    const size_t readers = CHUNK * h->R, chunks = fwm_tiles(h->T, c->length), by_value = c->ld_v * sizeof(real);
    w.state = h->K * c->ld_v;
    w.segment = chunks_of_segment(chunks);
    w.checkpoints = take(arena, (fwm_tiles(chunks, w.segment) + 1) * w.state);
    w.states = take(arena, (w.segment + 1) * w.state);
    w.r = take_bytes(arena, w.segment * c->length * by_value);
    w.s = take(arena, w.segment * c->length);
    w.H = take(arena, w.state);
    w.e = take_bytes(arena, readers * by_value);
    w.e_scaled = take_bytes(arena, readers * by_value);
    w.eta = take_bytes(arena, CHUNK * by_value);
    w.eta_scaled = take_bytes(arena, CHUNK * by_value);
    w.dv = take_bytes(arena, CHUNK * by_value);
    w.e_t = take(arena, h->V * readers);
    w.eta_t = take(arena, h->V * CHUNK);
    w.w_t = take(arena, h->V * CHUNK);
    w.e_w = take(arena, readers * CHUNK);
    w.eta_w = take(arena, CHUNK * CHUNK);
    w.dk = take(arena, CHUNK * c->ld_k);
    w.dq = take(arena, readers * c->ld_k);
    w.dk_t = take(arena, h->K * CHUNK);
    w.dq_t = take(arena, h->K * readers);
    return w;
}

/* Loads a chunk with its queries: e = do, d = v - r. dk and dq are cleared because their padding is multiplied by that
 * of keys and queries. */
static void begin_chunk(const ValueHead *h, NormedBackwardScratch *w, size_t start, const real *r)
{
    NormedChunk *c = &w->chunk;
    load_normed_chunk(h, c, start, true);
    for (size_t i = 0; i < c->n * h->R; i++)
        load_row(h->V, c->ld_v, token(h->dout, start + i / h->R) + i % h->R * h->V, w->e + i * c->ld_v);
    memset(w->dk, 0, c->n * c->ld_k * sizeof(real));
    memset(w->dq, 0, c->n * h->R * c->ld_k * sizeof(real));
    add_scaled(c->n * c->ld_v, -1, r, c->d);
}

/* A token of the plain recurrence, where H is all of dS. S0 and S1 are the states before and after it. */
static void token_gradients(const ValueHead *h, NormedBackwardScratch *w, const real *S0, const real *S1, real s)
{
    const NormedChunk *c = &w->chunk;
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
static void prepare_chunk(const ValueHead *h, NormedBackwardScratch *w, const real *s)
{
    const NormedChunk *c = &w->chunk;
    const size_t R = h->R, ld = c->ld_v;
    begin_fading(c);
    for (size_t t = 0; t < c->n; t++) {
        fade_states(c, t, s[t]);
        scale(ld, *token(h->beta, c->start + t) / s[t], c->d + t * ld, c->w + t * ld);
    }
    for (size_t i = 0; i < c->n * R; i++)
        scale(ld, faded(c, 0, i / R + 1), w->e + i * ld, w->e_scaled + i * ld);
    multiply_keys(h, c);
    transpose(c->n, h->V, c->w, ld, w->w_t, CHUNK);
    gemm(c->n * R, CHUNK, h->K, rows_of(c->q, c->ld_k), c->k_t, CHUNK, 0, NULL, c->qk, CHUNK);
    gemm(c->n * R, CHUNK, h->V, rows_of(w->e, ld), w->w_t, CHUNK, 0, NULL, w->e_w, CHUNK);
}

/* dq_t = fade(0, t) S_0 e_t + sum_{j <= t} fade(j, t) (w_j . e_t) k_j */
static void query_gradients(const ValueHead *h, NormedBackwardScratch *w, const real *S0)
{
    const NormedChunk *c = &w->chunk;
    const size_t R = h->R, n = c->n * R, readers = CHUNK * R;
    real weights[CHUNK];
    transpose(n, h->V, w->e_scaled, c->ld_v, w->e_t, readers);
    gemm(h->K, readers, h->V, rows_of(S0, c->ld_v), w->e_t, readers, 0, NULL, w->dq_t, readers);
    transpose(h->K, n, w->dq_t, readers, w->dq, c->ld_k);
    for (size_t i = 0; i < n; i++) {
        const size_t t = i / R;
        for (size_t j = 0; j <= t; j++)
            weights[j] = faded(c, j + 1, t + 1) * w->e_w[i * CHUNK + j];
        combine(c->ld_k, 1, t + 1, weights, c->k, w->dq + i * c->ld_k);
    }
}

/* y_t, whose row in eta holds H_n^T k_t:
 * fade(t-1, n) H_n^T k_t + sum_{j > t} fade(t-1, j-1) (k_j . k_t) eta_j + sum_{j >= t} fade(t-1, j) (q_j . k_t) e_j */
static void complete_y(const ValueHead *h, NormedBackwardScratch *w, size_t t)
{
    const NormedChunk *c = &w->chunk;
    const size_t R = h->R, n = c->n, ld = c->ld_v;
    real weights[CHUNK];
    for (size_t j = t + 1; j < n; j++)
        weights[j - t - 1] = faded(c, t, j) * c->gram[t * CHUNK + j];
    combine(ld, faded(c, t, n), n - t - 1, weights, w->eta + (t + 1) * ld, w->eta + t * ld);
    for (size_t i = t * R; i < n * R; i++)
        add_scaled(ld, faded(c, t, i / R + 1) * c->qk[i * CHUNK + t], w->e + i * ld, w->eta + t * ld);
}

/* A token: y becomes eta; dv, dbeta, gamma and c. */
static void write_gradients(const ValueHead *h, NormedBackwardScratch *w, size_t t, real s, const real *restrict r)
{
    const NormedChunk *c = &w->chunk;
    const real beta = *token(h->beta, c->start + t), kk = c->gram[t * CHUNK + t];
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

/* dk_t, see the top of this file; S_0 eta_t and H_n w_t are matrix products. w_t is overwritten with its scaled
 * rows. */
static void key_gradients(const ValueHead *h, NormedBackwardScratch *w, const real *S0)
{
    const NormedChunk *c = &w->chunk;
    const size_t R = h->R, n = c->n, ld = c->ld_v;
    real weights[CHUNK];
    gemm(n, CHUNK, h->V, rows_of(w->eta, ld), w->w_t, CHUNK, 0, NULL, w->eta_w, CHUNK);
    for (size_t t = 0; t < n; t++) {
        scale(ld, faded(c, 0, t), w->eta + t * ld, w->eta_scaled + t * ld);
        scale(ld, faded(c, t + 1, n), c->w + t * ld, c->scaled + t * ld);
    }
    transpose(n, h->V, w->eta_scaled, ld, w->eta_t, CHUNK);
    transpose(n, h->V, c->scaled, ld, w->w_t, CHUNK);
    gemm(h->K, CHUNK, h->V, rows_of(S0, ld), w->eta_t, CHUNK, 0, NULL, w->dk_t, CHUNK);
    gemm(h->K, CHUNK, h->V, rows_of(w->H, ld), w->w_t, CHUNK, 1, w->dk_t, w->dk_t, CHUNK);
    transpose(h->K, n, w->dk_t, CHUNK, w->dk, c->ld_k);
    for (size_t t = 0; t < n; t++) {
        real *dk = w->dk + t * c->ld_k;
        for (size_t j = 0; j < n; j++)
            weights[j] = j > t   ? faded(c, t + 1, j) * w->eta_w[j * CHUNK + t]
                         : j < t ? faded(c, j + 1, t) * w->eta_w[t * CHUNK + j]
                                 : (real)w->k_on_itself[t];
        combine(c->ld_k, 1, n, weights, c->k, dk);
        for (size_t i = t * R; i < n * R; i++)
            add_scaled(c->ld_k, faded(c, t + 1, i / R + 1) * w->e_w[i * CHUNK + t], c->q + i * c->ld_k, dk);
    }
}

/* H_0 = fade(0, n) H_n + sum_j fade(0, j-1) k_j eta_j^T + sum_j fade(0, j) q_j e_j^T */
static void state_gradients(const ValueHead *h, NormedBackwardScratch *w)
{
    const NormedChunk *c = &w->chunk;
    const size_t ld = c->ld_v;
    gemm(h->K, ld, c->n, transposed(c->k, c->ld_k), w->eta_scaled, ld, faded(c, 0, c->n), w->H, w->H, ld);
    gemm(h->K, ld, c->n * h->R, transposed(c->q, c->ld_k), w->e_scaled, ld, 1, w->H, w->H, ld);
}

static void chunk_gradients(const ValueHead *h, NormedBackwardScratch *w, const real *S0, const real *S1, const real *r,
                            const real *s)
{
    const NormedChunk *c = &w->chunk;
    prepare_chunk(h, w, s);
    query_gradients(h, w, S0);
    w->c = inner(h->K, c->ld_v, w->H, S1) + w->gamma * inner(h->K, c->ld_v, S1, S1);
    gemm(c->n, c->ld_v, h->K, rows_of(c->k, c->ld_k), w->H, c->ld_v, 0, NULL, w->eta, c->ld_v);
    for (size_t t = c->n; t-- > 0;) {
        complete_y(h, w, t);
        write_gradients(h, w, t, s[t], r + t * c->ld_v);
    }
    key_gradients(h, w, S0);
    state_gradients(h, w);
}

/* dq, dk and dv of a chunk, into the head's arrays */
static void store_gradients(const ValueHead *h, const NormedBackwardScratch *w)
{
    const NormedChunk *c = &w->chunk;
    const LoadedRows k = {c->k, c->k_factors, c->ld_k, 0}, q = {c->q, c->q_factors, h->R * c->ld_k, c->ld_k};
    store_queries(h, c->start, c->n, c->ld_k, &q, w->dq);
    store_keys(h, c->start, c->n, c->ld_k, &k, w->dk);
    for (size_t t = 0; t < c->n; t++)
        copy(h->V, w->dv + t * c->ld_v, token(h->dv, c->start + t));
}

/* The states, r and s of a segment, from its checkpoint. */
static void run_segment(const ValueHead *h, NormedBackwardScratch *w, size_t segment)
{
    NormedChunk *c = &w->chunk;
    const size_t tokens = w->segment * c->length, begin = segment * tokens, end = fwm_min(h->T, begin + tokens);
    real *S = w->states, *r = w->r, *s = w->s;
    memcpy(S, w->checkpoints + segment * w->state, w->state * sizeof(real));
    for (size_t start = begin; start < end; start += c->length) {
        load_normed_chunk(h, c, start, false);
        write_normed_chunk(h, c, S, S + w->state, r, s);
        S += w->state;
        r += c->n * c->ld_v;
        s += c->n;
    }
    memcpy(w->checkpoints + (segment + 1) * w->state, S, w->state * sizeof(real));
}

static void segment_gradients(const ValueHead *h, NormedBackwardScratch *w, size_t segment)
{
    const NormedChunk *c = &w->chunk;
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

static void backward_head(const ValueHead *h, NormedBackwardScratch *w)
{
    const size_t ld = w->chunk.ld_v, segments = fwm_tiles(fwm_tiles(h->T, w->chunk.length), w->segment);
    load_columns(h, 0, h->V, ld, h->initial_state, w->checkpoints);
    load_columns(h, 0, h->V, ld, h->dfinal_state, w->H);
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
        store_columns(h, 0, h->V, ld, w->H, h->dinitial_state);
    }
}

static size_t bytes_of_thread(const FwmRuleCall *call)
{
    const ValueHead h = longest_head(call);
    Arena arena = {0};
    take_scratch(&h, &arena);
    return arena.next;
}

size_t fast_weight_memory_backward_scratch(const void *rule_call, int threads)
{
    const FwmRuleCall *call = rule_call;
    return bytes_of_thread(call) * (size_t)threads;
}

/* A key head: its value heads one after the other, so that dk and dq are summed in a fixed order. */
static void backward_task(void *context, size_t index, int thread)
{
    const NormedWork *work = context;
    const FwmRuleCall *call = work->call;
    const size_t sequence = index / call->H, value_heads = call->HV / call->H, first = index % call->H * value_heads;
    for (size_t hv = first; hv < first + value_heads; hv++) {
        const ValueHead h = head_of(call, sequence, hv);
        Arena arena = arena_of_thread(work->scratch, thread, work->bytes);
        NormedBackwardScratch w = take_scratch(&h, &arena);
        backward_head(&h, &w);
    }
}

void fast_weight_memory_backward(const void *rule_call, int threads, void *scratch)
{
    const FwmRuleCall *call = rule_call;
    NormedWork work = {call, scratch, bytes_of_thread(call)};
    fwm_parallel_for(threads, call->n_sequences * call->H, backward_task, &work);
}
