"""The training step in PyTorch with the algorithms of the C code, to tell what is algorithm and what is C.

    python benchmarks/torch_fast.py      checks loss and gradients against torch_program.py, every map with every rule

Because values are one-hot, W_k x = P[key] + W_k[:, value] with P projected once per key; one query a sequence needs
no memory of size N x p, but for the norm in fwm. docs/mathematics derives these forms.
Shapes as in torch_program.py; C is the number of tokens in a chunk, R of the rows of a memory.
"""

import itertools
import math

import torch
import torch.nn.functional as F
from torch_program import READ_OUT_EPS, RetrievalModel, draw_batch, draw_omega

DELTA_CHUNK = 32
FWM_CHUNK = 16  # products of the clamp's divisors reach 1e25 within a chunk of this size early in training
NEGLIGIBLE = 1e-20  # beside a memory of norm 1; smaller numbers soon become denormals, on which products are slow


def at_values(amounts, values, n_values):
    """Adds up amounts (B, L) by their value (B, L): the read-out sum_t amount_t v_t, (B, N)."""
    return amounts.new_zeros(len(amounts), n_values).scatter_add(1, values, amounts)


def sum_rule(K, values, q, n_values):
    scores = torch.bmm(K, q.unsqueeze(-1)).squeeze(-1)
    return at_values(scores, values, n_values) / (scores.sum(dim=1, keepdim=True) + READ_OUT_EPS)


def delta_rule(K, values, q, beta, n_values):
    """Carries the query backwards through time: a_t = k_t . u, then u <- u - beta_t a_t k_t, by chunks of tokens.

    In a chunk a_t = k_t . (u - sum_{j>t} beta_j a_j k_j), which is (I + triu(K K^T diag(beta), 1)) a = K u; the
    triangular systems do not depend on u, so all chunks are solved at once and the loop is two products a chunk.
    """
    B, L, p = K.shape
    K = K / K.sum(dim=-1, keepdim=True)
    u = q / (q.sum(dim=-1, keepdim=True) + READ_OUT_EPS)
    C = min(DELTA_CHUNK, L)
    padding = -L % C
    chunks = F.pad(K, (0, 0, 0, padding)).view(B, -1, C, p)
    rates = F.pad(beta, (0, padding)).view(B, -1, C)
    system = torch.triu((chunks @ chunks.mT) * rates.unsqueeze(-2), diagonal=1)
    solved = torch.linalg.solve_triangular(system, chunks, upper=True, unitriangular=True)
    amounts = []
    for k, k_solved, rate in reversed(list(zip(chunks.unbind(1), solved.unbind(1), rates.unbind(1)))):
        amount = rate * torch.bmm(k_solved, u.unsqueeze(-1)).squeeze(-1)
        u = u - torch.bmm(amount.unsqueeze(1), k).squeeze(1)
        amounts.append(amount)
    return at_values(torch.cat(amounts[::-1], dim=1)[:, :L], values, n_values)


# ---- fwm: the memory is needed, but its norm follows from scalars -----------------------------------------------


def rows_by_first_use(values, n_values):
    """Numbers the values of each sequence in the order they appear, so that a prefix of rows is the used part.

    Returns row_of_value (B, N) and, for each token, how many rows are in use in any sequence of the batch after it.
    """
    B, L = values.shape
    time = torch.arange(L).expand(B, L)
    first_use = torch.full((B, n_values), L).scatter_reduce(1, values, time, "amin")
    row_of_value = first_use.argsort(dim=1).argsort(dim=1)
    rows = row_of_value.gather(1, values)
    return row_of_value, (rows.cummax(dim=1).values.amax(dim=0) + 1).tolist()


class FwmMemory(torch.autograd.Function):
    """W_L q after the clamped updates: keys K (B, L, p), rows (B, L), beta (B, L), q (B, p) -> (B, R of the end).

    With o = W k before the update, d = v - o, r = |o|^2, a = o[v] and n = |W|^2, the update W + beta d k^T has the
    squared norm n + 2 beta (a - r) + beta^2 (r - 2 a + 1) |k|^2, and s = max(1, its root) divides it (not at the
    first token). In a chunk that starts from W_0, with S_t = s_1 .. s_t and f_t = S_{t-1} beta_t d_t,
    W_t = (W_0 + sum_{j<=t} f_j k_j^T) / S_t. Backwards, dL/dW_t = H_t + gamma_t W_t, so that the gradient through
    the norms stays a scalar, and with D_t = s_{t+1} .. s_C, H_t = (H_C + sum_{j>t} e_j k_j^T) / D_t.
    W and H are kept transposed, (B, p, R).
    """

    @staticmethod
    def forward(ctx, K, rows, beta, q, rows_used):
        W, norm2 = K.new_zeros(len(K), K.shape[2], 0), K.new_zeros(len(K))
        ctx.chunks = []
        for start in range(0, K.shape[1], FWM_CHUNK):
            span = slice(start, start + FWM_CHUNK)
            k, row, rate = K[:, span], rows[:, span], beta[:, span]
            W = F.pad(W, (0, rows_used[span][-1] - W.shape[2]))
            G, d, f = k @ k.mT, -(k @ W), W.new_empty(*row.shape, W.shape[2])
            s, S, total = torch.ones_like(rate), torch.ones_like(rate), torch.ones_like(norm2)
            for t in range(k.shape[1]):
                d_t = d[:, t]  # -o_t until the value is added
                if t > 0:
                    d_t -= torch.bmm(G[:, t : t + 1, :t], f[:, :t]).squeeze(1)
                    d_t /= total[:, None]
                a, r = -d_t.gather(1, row[:, t : t + 1]).squeeze(1), torch.linalg.vecdot(d_t, d_t)
                b = rate[:, t]
                norm2 = norm2 + 2 * b * (a - r) + b * b * (r - 2 * a + 1) * G[:, t, t]
                d_t.scatter_add_(1, row[:, t : t + 1], torch.ones_like(a)[:, None])
                torch.mul(d_t, (total * b)[:, None], out=f[:, t])
                S[:, t] = total
                if start + t > 0:
                    s[:, t] = norm2.clamp(min=1).sqrt()
                    total = total * s[:, t]
                    norm2 = norm2.clamp(max=1)
            ctx.chunks.append((W, d, f, s, S))
            W = F.hardshrink(torch.baddbmm(W, k.mT, f) / total[:, None, None], NEGLIGIBLE)
        y = torch.bmm(q.unsqueeze(1), W).squeeze(1)
        ctx.save_for_backward(K, rows, beta, q, W, y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, dy):
        K, rows, beta, q, W_end, y = ctx.saved_tensors
        dK, dbeta = torch.empty_like(K), torch.empty_like(beta)
        H, gamma, c = q.unsqueeze(2) * dy.unsqueeze(1), torch.zeros_like(dy[:, 0]), torch.linalg.vecdot(dy, y)
        for start in reversed(range(0, K.shape[1], FWM_CHUNK)):
            span = slice(start, start + FWM_CHUNK)
            k, row, rate = K[:, span], rows[:, span], beta[:, span]
            W, d, f, s, S = ctx.chunks.pop()
            H = H[..., : W.shape[2]]  # rows that no token has used yet are read by none
            G, x, e, xi = k @ k.mT, k @ H, torch.empty_like(f), torch.empty_like(f)
            D, kappas, total = torch.ones_like(s), torch.empty_like(s), torch.ones_like(c)
            for t in reversed(range(k.shape[1])):
                b, kk, row_t, d_t, x_t = rate[:, t], G[:, t, t], row[:, t : t + 1], d[:, t], x[:, t]
                x_t += torch.bmm(G[:, t : t + 1, t + 1 :], e[:, t + 1 :]).squeeze(1)
                total = total * s[:, t]
                x_t /= total[:, None]  # H_t k_t / s_t
                clamped = s[:, t] > 1
                kappa = torch.where(clamped, (gamma - c) / s[:, t].square(), gamma)
                # With o = v - d: g = x + kappa (v - (1 - b kk) d), the part of v added by scatter.
                g = torch.addcmul(x_t, d_t, (kappa * (b * kk - 1))[:, None])
                g.scatter_add_(1, row_t, kappa[:, None])
                dbeta[:, start + t] = torch.linalg.vecdot(d_t, g)
                torch.sub(d_t * kappa[:, None], g, out=xi[:, t])
                # eta = -b x + kappa ((2 b - b^2 kk) d - b v), e = D_{t-1} eta
                e_t = torch.mul(x_t, (-b * total)[:, None], out=e[:, t])
                e_t.addcmul_(d_t, (total * kappa * b * (2 - b * kk))[:, None])
                e_t.scatter_add_(1, row_t, -(total * kappa * b)[:, None])
                c = torch.where(clamped, 0, c) - b * g.gather(1, row_t).squeeze(1)
                gamma, kappas[:, t], D[:, t] = kappa, kappa, total
            through_H = d @ H.mT + torch.triu(d @ e.mT, diagonal=1) @ k
            through_W = xi @ W.mT + torch.tril(xi @ f.mT, diagonal=-1) @ k
            through_norm = (kappas * rate.square() * torch.linalg.vecdot(d, d)).unsqueeze(-1) * k
            dK[:, span] = (rate / D).unsqueeze(-1) * through_H + (rate / S).unsqueeze(-1) * through_W + through_norm
            H = F.hardshrink(torch.baddbmm(H, k.mT, e) / total[:, None, None], NEGLIGIBLE)
        return dK, None, dbeta, torch.bmm(W_end, dy.unsqueeze(-1)).squeeze(-1), None


def fwm_rule(K, values, q, beta, n_values):
    row_of_value, rows_used = rows_by_first_use(values, n_values)
    y = FwmMemory.apply(K, row_of_value.gather(1, values), beta, q, rows_used)
    y = F.pad(y, (0, n_values - y.shape[1])).gather(1, row_of_value)
    return F.layer_norm(y, y.shape[-1:])


# ---- model ------------------------------------------------------------------------------------------------------


class FastModel(RetrievalModel):
    """RetrievalModel with the same parameters and the same loss, computed the fast way."""

    def forward(self, keys, values, query, omega=None):
        N, values = self.n_keys, values - self.n_keys
        query_embedding = F.embedding(query, self.embeddingK.weight)
        if self.rule == "softmax":
            return self.read_out_softmax(keys, values, self.W_q(query_embedding))
        if self.attn_name == "favor" and omega is None:
            omega = draw_omega(self.hidden_size, self.attn_arg)
        q = self.feature_map(omega)(self.W_q(query_embedding))
        K = (
            self.favor_keys(keys, values, omega)
            if self.attn_name == "favor"
            else self.feature_map()(self.project(self.W_k, keys, values))
        )
        if self.rule == "sum":
            return sum_rule(K, values, q, N)
        beta = torch.sigmoid(self.project(self.W_b, keys, values)).squeeze(-1)
        return (delta_rule if self.rule == "ours" else fwm_rule)(K, values, q, beta, N)

    def tables(self, linear):
        """`linear` of every key (N, rows), bias included, and of every value (N, rows)."""
        N = self.n_keys
        return F.linear(self.embeddingK.weight[:N], linear.weight[:, N:], linear.bias), linear.weight[:, :N].mT

    def project(self, linear, keys, values):
        of_key, of_value = self.tables(linear)
        return F.embedding(keys, of_key) + F.embedding(values, of_value)

    def favor_keys(self, keys, values, omega):
        """FAVOR+ of the keys (B, L, 2 m): x omega and |x|^2 are put together from tables over keys and values."""
        P, V = self.tables(self.W_k)
        u = F.embedding(keys, P @ omega) + F.embedding(values, V @ omega)
        norm2 = P.square().sum(1, keepdim=True) + V.square().sum(1) + 2 * P @ V.mT
        norm2 = F.embedding(keys * self.n_keys + values, norm2.reshape(-1, 1))
        offset = 0.5 * (norm2 + math.log(2 * omega.shape[1]))
        return torch.cat([torch.exp(u - offset), torch.exp(-u - offset)], dim=-1)

    def read_out_softmax(self, keys, values, q):
        """No key is projected: q . (W_k x) = (q W_k) . x, and the bias adds the same to all scores of a sequence."""
        N = self.n_keys
        back_projected = q @ self.W_k.weight
        of_key = back_projected[:, N:] @ self.embeddingK.weight[:N].mT
        scores = (of_key.gather(1, keys) + back_projected[:, :N].gather(1, values)) / math.sqrt(self.hidden_size)
        return at_values(torch.softmax(scores, dim=1), values, N)


def relative_error(attn_name, attn_arg, update_rule, n_keys=23, replace=True, batch_size=5, dtype=torch.float64):
    """The largest difference to torch_program of the loss and of any gradient, each against its own largest entry."""
    torch.manual_seed(1)
    slow = RetrievalModel(n_keys, attn_name, attn_arg, update_rule, hidden_size=12).to(dtype)
    fast = FastModel(n_keys, attn_name, attn_arg, update_rule, hidden_size=12).to(dtype)
    fast.load_state_dict(slow.state_dict())
    batch = draw_batch(n_keys, replace, batch_size)
    omega = draw_omega(12, attn_arg).to(dtype) if attn_name == "favor" else None
    expected, loss = slow.loss(*batch, omega), fast.loss(*batch, omega)
    expected.backward()
    loss.backward()
    errors = [abs(loss - expected).item() / expected.item()]
    for (name, p), g in zip(slow.named_parameters(), (p.grad for p in fast.parameters())):
        if not (slow.rule == "softmax" and name == "W_k.bias"):  # exactly zero, in one of them rounding noise
            errors.append(((p.grad - g).abs().max() / p.grad.abs().max()).item())
    return max(errors)


def main():
    maps = [("linear", 0), ("tanh", 0), ("dpfp", 1), ("dpfp", 3), ("favor", 16)]
    cases = [("softmax", 0, "sum")] + [(*m, rule) for m, rule in itertools.product(maps, ("sum", "ours", "fwm"))]
    for case in cases:
        error = relative_error(*case)
        print("{} {} {}: relative error {:.1e} in float64".format(*case, error))
        assert error < 1e-6, "the fast forms do not compute what torch_program.py computes"


if __name__ == "__main__":
    main()
