"""The scan of Mamba-2 in models of transformers, by itself, against the recurrence written out in float64."""

import itertools
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support import tiny_models  # noqa: E402
from support.tiny_models import Compiled, assert_near, disabled, modelling  # noqa: E402, F401

import fwm_py.transformers as bridge  # noqa: E402

B, H, P, G, N = 2, 6, 5, 3, 7
TENSORS = ("hidden_states", "dt", "A", "B", "C", "D", "dt_bias", "initial_states")
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


def recurrence(hidden_states, dt, A, B, C, D, dt_bias, initial_states, dt_softplus=True, dt_limit=(0, math.inf)):
    """h = exp(A dt) h + dt x B^T, y = h C + D x, and the state after the last token."""
    dt = dt if dt_bias is None else dt + dt_bias
    dt = ((1 + dt.exp()).log() if dt_softplus else dt).clamp(*dt_limit)
    B, C = (x.repeat_interleave(H // G, dim=2) for x in (B, C))
    h, outputs = torch.zeros(len(dt), H, P, N).to(dt) if initial_states is None else initial_states, []
    for t in range(dt.shape[1]):
        h = (A * dt[:, t]).exp()[..., None, None] * h
        h = h + (dt[:, t, :, None] * hidden_states[:, t])[..., None] * B[:, t, :, None]
        y = (h * C[:, t, :, None]).sum(-1)
        outputs.append(y if D is None else y + D[:, None] * hidden_states[:, t])
    return torch.stack(outputs, 1), h


def inputs(T, dtype=torch.float64, **changed):
    generator = torch.Generator().manual_seed(T)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    given = dict(
        hidden_states=draw(B, T, H, P),
        dt=draw(B, T, H),
        A=-draw(H).exp(),
        B=draw(B, T, G, N),
        C=draw(B, T, G, N),
        D=draw(H),
        dt_bias=draw(H),
        initial_states=draw(B, H, P, N),
    )
    given |= changed
    return {name: x.requires_grad_() if isinstance(x, torch.Tensor) else x for name, x in given.items()}


def loss(y, state):
    return (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum() + state.square().sum()


def gradients(results, given):
    wanted = [x for x in given.values() if isinstance(x, torch.Tensor)]
    return torch.autograd.grad(loss(*results), wanted)


def scan(family="mamba2", **given):
    options = {"chunk_size": 16, "dt_softplus": True, "return_final_states": True, "z": None} | given
    return modelling(family).mamba2_chunk_scan(**options)


CASES = [
    {},
    {"initial_states": None},
    {"D": None, "dt_bias": None},
    {"dt_limit": (0.3, 1.2)},
    {"dt_softplus": False},
    {"dt_softplus": False, "dt_limit": (-0.1, 0.4)},
]


@pytest.mark.parametrize("changed", CASES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("T", [1, 16, 37])
def test_chunk_scan(T, dtype, changed):
    given = inputs(T, dtype, **changed)
    exact = {
        name: x.detach().double().requires_grad_() if isinstance(x, torch.Tensor) else x for name, x in given.items()
    }
    expected = recurrence(**exact)
    with bridge.enabled():
        got = scan(**given)
        y = scan(**given, return_final_states=False)
    assert torch.equal(y, got[0]) and got[1].shape == (B, H, P, N)
    assert got[0].dtype == got[1].dtype == dtype
    for ours, wanted in zip((*got, *gradients(got, given)), (*expected, *gradients(expected, exact))):
        assert_near(ours, wanted, TOLERANCES[dtype])


@pytest.mark.parametrize("family", tiny_models.MAMBA2_FAMILIES)
def test_chunk_scan_in_bfloat16(family):
    """The reference's dtypes, and at least as near to what float64 gives."""
    given = {name: x.detach() for name, x in inputs(37, torch.bfloat16).items()}
    given |= {"A": given["A"].float(), "initial_states": given["initial_states"].float()}
    expected = recurrence(**{name: x.double() for name, x in given.items()})
    theirs = scan(family, **given)
    with bridge.enabled():
        ours = scan(family, **given)
    for got, reference, exact in zip(ours, theirs, expected):
        assert got.dtype == reference.dtype == torch.float32
        assert (got - exact).abs().max() <= 1.01 * (reference - exact).abs().max()


# documents of 3, 1 and 5 and of 6 and 1 tokens, with padding before, between and behind
SEQ_IDX = torch.tensor(
    [[-1, -1, 0, 0, 0, -1, 1, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, -1, -1, 1, -1, -1, -1]], dtype=torch.int32
)
DOCUMENTS = [(0, 2, 5), (0, 6, 7), (0, 7, 12), (1, 0, 6), (1, 8, 9)]
TOKENS = ("hidden_states", "dt", "B", "C")


def test_packed_documents_and_padding():
    """Each document is as if alone, with states of its own; padding gives 0 and touches nobody, whatever it holds."""
    padding = SEQ_IDX < 0
    given = inputs(12, initial_states=torch.randn(5, H, P, N, dtype=torch.float64))
    for name in TOKENS:
        hole = padding.reshape(B, 12, *[1] * (given[name].dim() - 2))
        given[name] = given[name].detach().masked_fill(hole, math.nan).requires_grad_()
    alone = []
    for n, (b, i, j) in enumerate(DOCUMENTS):
        document = {name: given[name][b : b + 1, i:j] for name in TOKENS}
        alone.append(recurrence(**given | document | {"initial_states": given["initial_states"][n : n + 1]}))
    expected = torch.cat([y for y, _ in alone], 1)[0], torch.cat([state for _, state in alone])
    with bridge.enabled():
        y, state = scan(**given, seq_idx=SEQ_IDX)
    got = torch.cat([y[b, i:j] for b, i, j in DOCUMENTS]), state
    assert not y[padding].any()
    for ours, wanted in zip((*got, *gradients(got, given)), (*expected, *gradients(expected, given))):
        assert_near(ours, wanted, 1e-12)


def test_documents_by_cu_seqlens():
    given, cu_seqlens = inputs(12), torch.tensor([0, 3, 3, 12, 24])
    given["initial_states"] = torch.randn(4, H, P, N, dtype=torch.float64)
    row = {name: given[name].flatten(0, 1)[None] for name in TOKENS}
    with bridge.enabled():
        y, state = scan(**given | row, cu_seqlens=cu_seqlens)
        for n, (i, j) in enumerate(itertools.pairwise(cu_seqlens)):
            document = {name: row[name][:, i:j] for name in TOKENS}
            alone, after = scan(**given | document | {"initial_states": given["initial_states"][n : n + 1]})
            assert_near(state[n : n + 1], after, 1e-12)
            assert i == j or torch.allclose(y[:, i:j], alone, rtol=1e-12)


@pytest.mark.parametrize("family", tiny_models.MAMBA2_FAMILIES)
def test_a_packed_layer_in_training(family):
    """There transformers asks for the whole layer at once, and refuses packed sequences without a GPU's package."""
    layer, seq_idx = tiny_models.linear_layer(family).train(), torch.tensor([[0] * 5 + [1] * 7], dtype=torch.int32)
    x = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="packed"):
        layer(x, seq_idx=seq_idx)
    with bridge.enabled():
        got, alone = layer(x, seq_idx=seq_idx), (layer(x[:, :5]), layer(x[:, 5:]))
    assert_near(got, torch.cat(alone, 1), 1e-5)


# --- one token --------------------------------------------------------------------------------------------------------


def token(dtype=torch.float64, state_dtype=None, **changed):
    """As the models give it: what is the same for all of a head is expanded."""
    given = {name: x.detach() for name, x in inputs(1, dtype).items()}
    return {
        "state": given["initial_states"].to(state_dtype or dtype),
        "hidden_states": given["hidden_states"][:, 0],
        "dt": given["dt"].transpose(1, 2).expand(-1, -1, P),
        "A": given["A"][:, None, None].expand(-1, P, N),
        "B": given["B"][:, 0],
        "C": given["C"][:, 0],
        "D": given["D"][:, None].expand(-1, P),
        "dt_bias": given["dt_bias"][:, None].expand(-1, P),
        "dt_softplus": True,
    } | changed


@pytest.mark.parametrize("state_dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("changed", [{}, {"D": None, "dt_bias": None}, {"z": True}, {"dt_softplus": False}], ids=str)
def test_state_update(changed, state_dtype):
    z = torch.randn(B, H, P, dtype=torch.float64) if changed.get("z") else None
    given = token(state_dtype=state_dtype, **changed | {"z": z})
    y, state = recurrence(
        given["hidden_states"][:, None],
        given["dt"][:, None, :, 0],
        given["A"][:, 0, 0],
        given["B"][:, None],
        given["C"][:, None],
        *(None if given[name] is None else given[name][:, 0] for name in ("D", "dt_bias")),
        given["state"].double(),
        given["dt_softplus"],
        (-math.inf, math.inf),  # limits are those of the chunks
    )
    y = y[:, 0] if z is None else y[:, 0] * z * z.sigmoid()
    with bridge.enabled():
        got = modelling("mamba2").mamba2_selective_state_update(**given)
    assert_near(got, y, 1e-12)
    assert_near(given["state"], state, 1e-12 if state_dtype is torch.float64 else 1e-6)


@pytest.mark.parametrize(
    "name, changed",
    [
        ("mamba2_selective_state_update", token(A=-torch.rand(H, P, N, dtype=torch.float64))),
        ("mamba2_selective_state_update", token(dt=torch.randn(B, H, P, dtype=torch.float64))),
        ("mamba2_selective_state_update", token(D=torch.randn(H, P, dtype=torch.float64))),
        ("mamba2_chunk_scan", {**inputs(3), "chunk_size": 16, "z": torch.randn(B, 3, H, P)}),
        ("mamba2_chunk_scan", {**inputs(3), "chunk_size": 16, "D": torch.randn(H, P)}),
    ],
    ids=["A", "dt", "D", "z", "D of chunks"],
)
def test_another_scan_gets_the_original(name, changed, monkeypatch):
    """One that is not the same for all of a head, and what the models do not ask for."""
    monkeypatch.setattr(modelling("mamba2"), name, lambda **given: given)
    with bridge.enabled():
        got = getattr(modelling("mamba2"), name)(**changed)
    assert got.keys() == changed.keys() and all(got[key] is changed[key] for key in changed)


@pytest.mark.parametrize("family", ["falcon_h1"])
def test_without_a_norm(family):
    """A gate goes into the update then."""
    model, ids = tiny_models.make(family, mamba_rms_norm=False), tiny_models.tokens(T=9)
    expected = model.generate(ids, max_new_tokens=12, do_sample=False)
    with bridge.enabled():
        assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False), expected)


def test_compiled_layer():
    """Without graph breaks, and one token with its states."""
    layer, x = tiny_models.linear_layer("bamba"), torch.randn(1, 19, 32, generator=torch.Generator().manual_seed(3))
    update = modelling("bamba").mamba2_selective_state_update
    with bridge.enabled():
        expected = layer(x)
        got = (compiled := Compiled(layer, fullgraph=True))(x)
        got.sum().backward()
        update = modelling("bamba").mamba2_selective_state_update
        one, other = token(torch.float32), token(torch.float32)
        y = update(**one)
        assert_near(Compiled(update, fullgraph=True)(**other), y, 1e-6)
    assert_near(other["state"], one["state"], 1e-6)
    assert compiled.operators == {"rule", "causal_conv1d", "rms_norm"}
    assert_near(got, expected, 1e-5)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"B": torch.randn(B, 3, 4, N)}, "^v: got 6 heads, expected a multiple of the 4"),
        ({"initial_states": torch.randn(B, H, N, P)}, "^initial_state: got shape"),
        ({"initial_states": torch.randn(B + 1, H, P, N)}, "^initial_state: got shape"),
    ],
    ids=["groups", "a state key first", "states of other sequences"],
)
def test_refused(changed, message):
    with bridge.enabled(), pytest.raises(ValueError, match=message):
        scan(**inputs(3, torch.float32, **changed))


def test_a_lost_function_is_named(monkeypatch):
    """A version of transformers that has it no more: its models keep theirs, and the others are served."""
    monkeypatch.delattr(modelling("mamba2"), "mamba2_chunk_scan")
    changed = bridge.enable()
    assert "no mamba2_chunk_scan" in changed["mamba2"] and "causal_conv1d_fn" in changed["mamba2"]
    assert not any(name.startswith("no ") for family in changed if family != "mamba2" for name in changed[family])
    assert bridge.enable() == {}
    assert "no mamba2_chunk_scan" not in bridge.disable()["mamba2"]
