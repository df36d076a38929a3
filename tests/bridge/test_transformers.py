"""Models of transformers with and without the kernels: logits, losses, gradients, generation, packed documents."""

import copy
import itertools
import threading
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support import rule_cases, tiny_models  # noqa: E402
from support.tiny_models import (  # noqa: E402, F401
    Compiled,
    Subclass,
    assert_near,
    disabled,
    every_family,
    linear_layer,
    modelling,
    tokens,
    training_step,
)

import fwm_py.transformers as bridge  # noqa: E402

GATED, KIMI = "torch_chunk_gated_delta_rule", "chunk_kimi_delta_attention"


# --- every family -----------------------------------------------------------------------------------------------------


def test_the_table_is_what_the_tests_have():
    assert set(tiny_models.MODELS) == set(bridge.FAMILIES)


@every_family
def test_logits_loss_and_gradients(family):
    """Equal to the reference's to 1e-4, or, where float64 shows those to be farther off, no farther than they are."""
    model, ids = tiny_models.make(family), tokens()
    logits, loss, gradients = training_step(model, ids)
    with bridge.enabled() as changed:
        assert family in changed
        ours = training_step(model, ids)
        exact = (
            (logits, loss, gradients)
            if family in tiny_models.NO_FLOAT64
            else training_step(copy.deepcopy(model).double(), ids)
        )
    assert_near(ours[0], logits)
    assert_near(ours[1], loss)
    assert ours[2].keys() == gradients.keys()
    for name, gradient in gradients.items():
        their_error = (gradient - exact[2][name]).abs().max() / exact[2][name].abs().max()
        assert_near(ours[2][name], exact[2][name], max(1e-4, 1.1 * their_error))
        assert_near(ours[2][name], gradient, max(1e-4, 2 * their_error))


@every_family
def test_generated_tokens(family):
    model, ids = tiny_models.make(family), tokens(T=11)

    def generate():
        with torch.no_grad():
            return model.generate(
                ids,
                max_new_tokens=20,
                min_new_tokens=20,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )

    expected = generate()
    with bridge.enabled():
        got = generate()
    assert got.sequences.shape == (2, 31)
    assert torch.equal(got.sequences, expected.sequences)
    for ours, theirs in zip(got.logits, expected.logits):
        assert_near(ours, theirs)


PADDED = torch.tensor([[0] * 3 + [1] * 8, [1] * 11])


@pytest.mark.parametrize(
    "options",
    [{"cache_implementation": "static"}, {"num_beams": 3}, {"attention_mask": PADDED}],
    ids=lambda options: next(iter(options)),
)
@every_family
def test_other_ways_to_generate(family, options):
    model, ids = tiny_models.make(family), tokens(T=11)
    expected = model.generate(ids, max_new_tokens=12, do_sample=False, **options)
    with bridge.enabled():
        assert torch.equal(model.generate(ids, max_new_tokens=12, do_sample=False, **options), expected)


@every_family
def test_prefill_in_parts(family):
    """A cached prefix, some tokens more, then one by one: the logits of the whole, but for Mamba-2, whose models limit
    the steps of prefill and not those of decoding."""
    model, ids = tiny_models.make(family), tokens(T=30)
    name = "cache_params" if family == "mamba2" else "past_key_values"

    @torch.no_grad()
    def in_parts():
        cache, parts = None, []
        for part in (ids[:, :9], ids[:, 9:26], *(ids[:, t : t + 1] for t in range(26, 30))):
            output = model(part, use_cache=True, **{name: cache})
            cache = getattr(output, name)
            parts.append(output.logits)
        return torch.cat(parts, dim=1)

    expected = in_parts() if family in tiny_models.MAMBA2_FAMILIES else model(ids).logits
    with bridge.enabled():
        assert_near(in_parts(), expected)


@every_family
def test_bfloat16(family):
    """As far from float32 as the reference in bfloat16 is, or nearer."""
    model, ids = tiny_models.make(family), tokens()
    exact = model(ids).logits
    rounded = tiny_models.in_bfloat16(model)
    theirs = rounded(ids).logits
    with bridge.enabled():
        ours = rounded(ids).logits
        assert ours.dtype == theirs.dtype
        rounded(ids, labels=ids).loss.backward()
    assert all(p.grad.isfinite().all() for p in rounded.parameters() if p.grad is not None)
    far = (theirs - exact).pow(2).mean().sqrt()
    assert (ours - exact).pow(2).mean().sqrt() <= 1.5 * far


# --- packed documents -------------------------------------------------------------------------------------------------

LENGTHS = (13, 1, 22)
CU_SEQLENS = torch.tensor([0, *np.cumsum(LENGTHS)], dtype=torch.int32)
SEQ_IDX = torch.repeat_interleave(torch.arange(3, dtype=torch.int32), torch.tensor(LENGTHS))[None]
BOUNDARIES = {"cu_seq_lens_q": CU_SEQLENS, "seq_idx": SEQ_IDX}


@pytest.mark.parametrize("boundaries", ["cu_seq_lens_q", "seq_idx", "cu_seq_lens_q seq_idx"])
@every_family
def test_packed_documents_are_apart(family, boundaries):
    """A layer called by itself: the others' outputs and gradients are the same to the bit; each is as if alone."""
    if family.startswith("inkling") and "seq_idx" not in boundaries:
        pytest.skip("its convolutions are told of seq_idx alone")
    boundaries = {name: BOUNDARIES[name] for name in boundaries.split()}
    layer = linear_layer(family)
    x = torch.randn(1, sum(LENGTHS), 32, generator=torch.Generator().manual_seed(3)).requires_grad_()
    other = x.detach().clone()
    other[0, 5] += 1  # in the first document
    other.requires_grad_()
    with bridge.enabled():
        y, z = layer(x, **boundaries), layer(other, **boundaries)
        alone = [layer(x[:, a:b]) for a, b in itertools.pairwise(CU_SEQLENS)]
    assert not torch.equal(y[:, :13], z[:, :13])
    assert torch.equal(y[:, 13:], z[:, 13:])
    assert_near(y, torch.cat(alone, dim=1), 1e-5)
    dx, dother = torch.autograd.grad(y.square().sum(), x)[0], torch.autograd.grad(z.square().sum(), other)[0]
    assert not torch.equal(dx[:, :13], dother[:, :13])
    assert torch.equal(dx[:, 13:], dother[:, 13:])


@pytest.mark.parametrize("family", ["qwen3_next", "kimi_linear"])
def test_packed_rows_by_seq_idx(family):
    """seq_idx of several rows."""
    layer = linear_layer(family)
    x = torch.randn(2, sum(LENGTHS), 32, generator=torch.Generator().manual_seed(3))
    with bridge.enabled():
        y = layer(x, seq_idx=torch.cat([SEQ_IDX, SEQ_IDX.clone().zero_()]))
        first, second = layer(x[:1], seq_idx=SEQ_IDX), layer(x[1:])
    assert_near(y, torch.cat([first, second]), 1e-5)


# two rows of documents of 3, 1 and 5 and of 6 and 1 tokens, with padding before, between and behind
PADDED_IDX = torch.tensor(
    [[-1, -1, 0, 0, 0, -1, 1, 2, 2, 2, 2, 2], [0, 0, 0, 0, 0, 0, -1, -1, 1, -1, -1, -1]], dtype=torch.int32
)
DOCUMENTS = [(0, 2, 5), (0, 6, 7), (0, 7, 12), (1, 0, 6), (1, 8, 9)]


@pytest.mark.parametrize("what", [float("nan"), float("inf"), 1.0], ids=str)
@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
def test_padding_of_a_convolution(activation, what):
    """Gives 0, and touches nobody whatever it holds: values, gradients, and those of the weights."""
    padding, generator = PADDED_IDX < 0, torch.Generator().manual_seed(3)
    x = torch.randn(2, 12, 6, generator=generator).masked_fill(padding[..., None], what).requires_grad_()
    weight, bias = (
        torch.randn(6, 4, generator=generator).requires_grad_(),
        torch.randn(6, generator=generator).requires_grad_(),
    )
    function = modelling("qwen3_next").causal_conv1d_fn
    alone = [
        function(x[b : b + 1, i:j].transpose(1, 2), weight, bias, activation).transpose(1, 2) for b, i, j in DOCUMENTS
    ]
    expected = torch.autograd.grad(sum(y.square().sum() for y in alone), (x, weight, bias))
    with bridge.enabled():
        y = (
            modelling("qwen3_next")
            .causal_conv1d_fn(x.transpose(1, 2), weight, bias, activation, seq_idx=PADDED_IDX)
            .transpose(1, 2)
        )
        gradients = torch.autograd.grad(y.square().sum() + y[padding].sum(), (x, weight, bias))
    assert not y[padding].any() and not gradients[0][padding].any()
    assert_near(torch.cat([y[b, i:j] for b, i, j in DOCUMENTS]), torch.cat(alone, 1)[0], 1e-5)
    for got, wanted in zip(gradients, expected):
        assert_near(got, wanted, 1e-5)


@pytest.mark.parametrize("family, name", [("qwen3_next", GATED), ("kimi_linear", KIMI)])
def test_padding_of_a_rule(family, name):
    """The same, and states are those of the documents."""
    padding, generator = PADDED_IDX < 0, torch.Generator().manual_seed(3)
    shapes = [(2, 12, 2, 4)] * 3 + [(2, 12, 2, 4) if family == "kimi_linear" else (2, 12, 2), (2, 12, 2)]
    x = [torch.randn(shape, generator=generator) for shape in shapes]
    x[3], x[4] = -x[3].square(), x[4].sigmoid()
    x = [y.masked_fill(padding.reshape(2, 12, *[1] * (y.dim() - 2)), float("nan")).requires_grad_() for y in x]
    state = torch.randn(5, 2, 4, 4, generator=generator).requires_grad_()
    options = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    with bridge.enabled():
        rule = getattr(modelling(family), name)
        alone = [
            rule(*(y[b : b + 1, i:j] for y in x), initial_state=state[n : n + 1], **options)
            for n, (b, i, j) in enumerate(DOCUMENTS)
        ]
        expected = torch.autograd.grad(sum(o.square().sum() + after.sum() for o, after in alone), (*x, state))
        o, after = rule(*x, initial_state=state, seq_idx=PADDED_IDX, **options)
        gradients = torch.autograd.grad(o.square().sum() + o[padding].sum() + after.sum(), (*x, state))
        assert torch.equal(rule(*x, seq_idx=PADDED_IDX)[0][padding], torch.zeros(int(padding.sum()), 2, 4))
    assert not o[padding].any() and after.shape == state.shape
    assert_near(torch.cat([o[b, i:j] for b, i, j in DOCUMENTS]), torch.cat([o for o, _ in alone], 1)[0], 1e-5)
    assert_near(after, torch.cat([state for _, state in alone]), 1e-5)
    for got, wanted in zip(gradients, expected):
        assert_near(got, wanted, 1e-5)


PACKING = (
    "qwen3_next",
    "qwen3_5",
    "olmo_hybrid",
    "bamba",
    "falcon_h1",
    "nemotron_h",
    "zamba2",
    "lfm2",
    "lfm2_moe",
    "lfm3",
)


@pytest.mark.parametrize("family", PACKING)
def test_a_packed_model(family):
    """The whole model with position_ids and boundaries, as a collator with flattening gives them; with a cache
    transformers' own attention would let documents see each other."""
    model = tiny_models.make(family).train()
    ids = tokens(1, sum(LENGTHS))
    positions = torch.cat([torch.arange(n) for n in LENGTHS])[None]
    with bridge.enabled(), torch.no_grad():
        whole = model(
            ids,
            position_ids=positions,
            seq_idx=SEQ_IDX,
            cu_seq_lens_q=CU_SEQLENS,
            cu_seq_lens_k=CU_SEQLENS,
            max_length_q=22,
            max_length_k=22,
            use_cache=False,
        )
        alone = [model(ids[:, a:b]).logits for a, b in itertools.pairwise(CU_SEQLENS)]
    assert_near(whole.logits, torch.cat(alone, dim=1))


# --- switching --------------------------------------------------------------------------------------------------------


def test_enable_and_disable_in_any_order():
    names = (GATED, "torch_recurrent_gated_delta_rule", "causal_conv1d_fn", "ALL_ATTENTION_FUNCTIONS")
    functions = {name: getattr(modelling("qwen3_next"), name) for name in names}
    norm = modelling("qwen3_next").Qwen3NextRMSNormGated.forward
    model, ids = tiny_models.make("qwen3_next"), tokens()
    before = model(ids).logits
    first = bridge.enable()
    assert set(first) == set(bridge.FAMILIES)
    assert set(functions) < set(first["qwen3_next"])
    assert bridge.enable() == {}
    with bridge.enabled() as changed:
        assert changed == {}
    assert not torch.equal(model(ids).logits, before)  # still enabled
    assert bridge.disable() == first
    assert bridge.disable() == {}
    assert all(getattr(modelling("qwen3_next"), name) is function for name, function in functions.items())
    assert modelling("qwen3_next").Qwen3NextRMSNormGated.forward is norm
    assert torch.equal(model(ids).logits, before)
    with pytest.raises(ZeroDivisionError), bridge.enabled():
        raise ZeroDivisionError
    assert torch.equal(model(ids).logits, before)
    assert bridge.enable() == first


def is_enabled():
    return isinstance(modelling("qwen3_next").ALL_ATTENTION_FUNCTIONS, bridge.models._Attention)


def test_enable_inside_a_with_statement_stays():
    with bridge.enabled():
        assert bridge.enable() == {}
    assert is_enabled()
    with bridge.enabled():
        assert bridge.disable() == {}
        assert is_enabled()  # held by the statement
    assert not is_enabled()


def test_with_statements_end_in_any_order():
    first, second = bridge.enabled(), bridge.enabled()
    first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    assert is_enabled()
    second.__exit__(None, None, None)
    assert not is_enabled()
    assert set(bridge.enable()) == set(bridge.FAMILIES)


def test_with_statements_of_many_threads():
    start, seen = threading.Barrier(8), []

    def work(i):
        start.wait()
        for j in range(20):
            with bridge.enabled():
                time.sleep(0.0005 * ((i + j) % 3))
                seen.append(is_enabled())

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 160 and all(seen)
    assert not is_enabled()


def test_what_another_has_put_in_place_since_stays(monkeypatch):
    bridge.enable()
    monkeypatch.setattr(modelling("kimi_linear"), KIMI, None)
    assert KIMI not in bridge.disable()["kimi_linear"]
    assert getattr(modelling("kimi_linear"), KIMI) is None


def test_other_devices_get_the_original(monkeypatch):
    calls = []
    monkeypatch.setattr(modelling("qwen3_next"), GATED, lambda *args, **options: calls.append(args[0].device.type))
    with bridge.enabled():
        getattr(modelling("qwen3_next"), GATED)(torch.empty(1, 2, 1, 4, device="meta"), None, None, None, None)
    assert calls == ["meta"]


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize(
    "family, name",
    [
        ("qwen3_next", GATED),
        ("qwen3_next", "torch_recurrent_gated_delta_rule"),
        ("qwen3_next", "causal_conv1d_fn"),
        ("qwen3_next", "causal_conv1d_update"),
        ("kimi_linear", KIMI),
        ("kimi_linear", "recurrent_kimi_delta_attention"),
    ],
)
def test_subclasses_get_the_original(family, name, at, monkeypatch):
    """Wherever one stands."""
    calls = []
    monkeypatch.setattr(modelling(family), name, lambda *args, **options: calls.append(args))
    args = (
        [torch.randn(2, 6, 9), torch.randn(2, 6, 4), torch.randn(6, 4)]
        if "update" in name
        else [torch.ones(1, 6, 2, 4)] * 5
    )
    args[at] = args[at].as_subclass(Subclass)
    with bridge.enabled():
        getattr(modelling(family), name)(*args)
    assert len(calls) == 1 and all(a is b for a, b in zip(calls[0], args))


def test_a_package_that_needs_a_gpu_is_not_called(monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("0 active drivers")

    for name in (GATED, "causal_conv1d_fn"):
        monkeypatch.setattr(modelling("qwen3_next"), name, fails)
    model, ids = tiny_models.make("qwen3_next"), tokens()
    with pytest.raises(RuntimeError, match="active drivers"):
        model(ids)
    with bridge.enabled():
        assert model(ids).logits.isfinite().all()


@pytest.mark.parametrize("W", [1, 2, 3, 4, 7, 16, 17])
def test_other_activations_and_widths(W):
    module = modelling("qwen3_next")
    x, weight, state = torch.randn(2, 6, 9), torch.randn(6, W), torch.randn(2, 6, W)
    for activation in (None, "silu", "swish", "gelu"):
        expected = module.causal_conv1d_fn(x, weight, activation=activation)
        token, before = (
            module.causal_conv1d_update(x[..., :1], (theirs := state.clone()), weight, None, activation),
            state.clone(),
        )
        with bridge.enabled():
            assert_near(module.causal_conv1d_fn(hidden_states=x, weight=weight, activation=activation), expected, 1e-6)
            assert_near(module.causal_conv1d_update(x[..., :1], before, weight, None, activation), token, 1e-6)
            assert torch.equal(before, theirs)


def test_another_width_where_sequences_are_packed_is_refused():
    with bridge.enabled(), pytest.raises(ValueError, match="^weight: got W = 17"):
        modelling("kimi_linear").causal_conv1d_fn(torch.randn(1, 6, 36), torch.randn(6, 17), cu_seq_lens_q=CU_SEQLENS)


def test_no_rows():
    with bridge.enabled():
        assert modelling("qwen3_next").causal_conv1d_fn(torch.empty(0, 6, 9), torch.ones(6, 4)).shape == (0, 6, 9)


def test_a_state_of_another_dtype():
    module = modelling("qwen3_next")
    x, weight, state = torch.randn(1, 6, 1), torch.randn(6, 4), torch.randn(1, 6, 4, dtype=torch.bfloat16)
    expected = module.causal_conv1d_update(x, state.clone(), weight)
    with bridge.enabled():
        assert_near(module.causal_conv1d_update(x, state.clone(), weight), expected, 1e-6)


def test_transforms_get_the_original():
    """torch.func.grad does not take operators like ours, and forward mode would drop their tangents."""
    layer = linear_layer("qwen3_next").requires_grad_(False)
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(3))
    expected = torch.func.jvp(layer, (x,), (x,))[1], torch.func.grad(lambda x: layer(x).square().sum())(x)
    with bridge.enabled():
        assert torch.equal(torch.func.jvp(layer, (x,), (x,))[1], expected[0])
        assert torch.equal(torch.func.grad(lambda x: layer(x).square().sum())(x), expected[1])


def test_a_family_that_cannot_be_imported_changes_nothing(monkeypatch):
    monkeypatch.setitem(bridge.FAMILIES, "llama_without", bridge.families.Family(()))
    monkeypatch.setattr(bridge.families.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ImportError):
        bridge.enable()
    assert bridge.disable() == {}


def test_without_transformers_it_says_what_to_install():
    script = (
        "import sys; sys.modules['transformers'] = None\n"
        "try:\n    import fwm_py.transformers\nexcept ImportError as error:\n    print(error)"
    )
    assert "pip install 'fwm_py[transformers]'" in rule_cases.run_python(script)


@pytest.mark.parametrize("family", ["qwen3_next", "kimi_linear", "olmo_hybrid"])
def test_a_compiled_packed_model(family):
    model, ids = tiny_models.make(family), tokens(1, sum(LENGTHS))
    packed = dict(
        position_ids=torch.cat([torch.arange(n) for n in LENGTHS])[None],
        cu_seq_lens_q=CU_SEQLENS,
        cu_seq_lens_k=CU_SEQLENS,
        max_length_q=22,
        max_length_k=22,
        use_cache=False,
    )
    with bridge.enabled(), torch.no_grad():
        assert_near(Compiled(model)(ids, **packed).logits, model(ids, **packed).logits, 1e-5)
