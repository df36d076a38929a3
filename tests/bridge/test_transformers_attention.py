"""Linear attention by name in models of transformers, against the same sums written with dense weights and masks."""

import functools
import re

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from support import tiny_models  # noqa: E402
from support.dense_attention import (  # noqa: E402
    IDS,
    MODELS,
    NAMES,
    PADDINGS,
    VOCABULARY,
    Layer,
    batch,
    case,
    dense,
    drawn,
    like,
    make,
    tokens,
)
from support.tiny_models import Compiled, assert_near, disabled  # noqa: E402, F401
from transformers.masking_utils import (  # noqa: E402
    AttentionMaskInterface,
    and_masks,
    causal_mask_function,
    or_masks,
    packed_sequence_mask_function,
    sdpa_mask,
)
from transformers.modeling_utils import AttentionInterface  # noqa: E402

import fwm_py.transformers as bridge  # noqa: E402
from fwm_py.transformers.linear_attention import ATTENTIONS, key_mask  # noqa: E402

every_model = pytest.mark.parametrize("family", MODELS)
every_decoder = pytest.mark.parametrize("family", ["llama", "gpt2"])
every_padding = pytest.mark.parametrize("padding", PADDINGS)


def outputs(model, given, real):
    model.zero_grad()
    output = model(**given)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.logits[real], output.loss.detach(), gradients


@every_padding
@every_model
@pytest.mark.parametrize("name", ["fwm_elu1", "fwm_dpfp2"])
def test_models(name, family, padding):
    """Logits, the loss and the gradients of all parameters."""
    model = make(family, name)
    given, real = batch(family, padding)
    (logits, loss, gradients), expected = (
        outputs(like(model, f"{form}{name}"), given, real) for form in ("", "dense_")
    )
    assert_near(logits, expected[0], 1e-6)  # Llama's norms are computed in float32
    assert_near(loss, expected[1], 1e-6)
    assert gradients.keys() == expected[2].keys()
    largest = max(x.abs().max() for x in expected[2].values())
    for parameter, gradient in gradients.items():
        assert (gradient - expected[2][parameter]).abs().max() <= 1e-6 * largest, parameter
    softmax = like(model, "sdpa")(**given).logits[real]
    assert (softmax - logits).abs().max() > 0.01 * logits.abs().max()


@every_padding
@every_model
def test_what_stands_in_padding_changes_nothing(family, padding):
    model, (given, real) = make(family, "fwm_dpfp1"), batch(family, padding)
    changed = given | {"input_ids": given["input_ids"].where(given["attention_mask"] == 1, tokens(3, 7, 5))}
    if "decoder_input_ids" in given:
        changed["decoder_input_ids"] = given["decoder_input_ids"].where(real, tokens(3, 5, 6))
    assert torch.equal(model(**changed).logits[real], model(**given).logits[real])


@every_model
def test_no_token_sees_a_later_one(family):
    model, (given, _) = make(family, "fwm_dpfp1"), batch(family, "left")
    field = "decoder_input_ids" if "decoder_input_ids" in given else "input_ids"
    later = given[field].clone()
    later[:, 4:] = tokens(*later[:, 4:].shape, 5)
    before, after = (model(**given | {field: ids}).logits for ids in (given[field], later))
    assert_near(after[:, :4], before[:, :4], 1e-12)
    assert (after[:, 4:] - before[:, 4:]).abs().max() > 0.01


def test_encoders_look_both_ways():
    model, (given, _) = make("marian"), batch("marian", "none")
    later = given["input_ids"].clone()
    later[:, -1] += 1
    encoder = model.get_encoder()
    first, second = (encoder(input_ids=ids % VOCABULARY).last_hidden_state[:, 0] for ids in (given["input_ids"], later))
    assert (first - second).abs().max() > 0.01


def test_a_decoder_without_order():
    """As its configuration says, which transformers' masks hear of."""
    model, (given, real) = make("llama", is_causal=False), batch("llama", "left")
    for mask in (given["attention_mask"], None):
        given["attention_mask"] = mask
        assert_near(model(**given).logits[real], like(model, "dense_fwm_elu1")(**given).logits[real], 1e-6)


# --- caches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 3])
@every_model
def test_generation(family, beams):
    """Of a padded batch: with a cache, with one that has room, and without."""
    model = make(family, "fwm_dpfp1")
    given, _ = batch(family, "left" if family in ("llama", "gpt2") else "right")
    given = {name: given[name] for name in ("input_ids", "attention_mask")}
    generate = functools.partial(model.generate, **given, num_beams=beams, do_sample=False, max_new_tokens=6)
    expected = like(model, "dense_fwm_dpfp1").generate(**given, num_beams=beams, do_sample=False, max_new_tokens=6)
    assert len({tuple(row) for row in expected.tolist()}) == 3
    assert torch.equal(generate(use_cache=False), expected)
    assert torch.equal(generate(), expected)
    assert torch.equal(generate(cache_implementation="static"), expected)
    if family in ("llama", "gpt2"):
        assert torch.equal(generate(prefill_chunk_size=3), expected)
        assert torch.equal(generate(prefill_chunk_size=3, cache_implementation="static"), expected)


class JunkCache(transformers.StaticCache):
    """Whose room holds what no token may see."""

    def update(self, key, value, layer, *args, **options):
        cached = self.layers[layer]
        first = not cached.is_initialized
        if first:
            cached.lazy_initialization(key, value)
            for x in (cached.keys, cached.values):
                x.fill_(1e9)
        return super().update(key, value, layer, *args, **options)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("kind", [transformers.DynamicCache, JunkCache])
@every_decoder
def test_pieces_behind_a_cache(family, kind, padding):
    model, (given, real) = make(family, "fwm_dpfp1"), batch(family, padding)
    ids, counts = given["input_ids"], given["attention_mask"]
    positions = (counts.cumsum(1) - 1).clamp(min=0)
    expected = model(input_ids=ids, attention_mask=counts, position_ids=positions).logits
    cache = kind(config=model.config, **({"max_cache_len": 11} if kind is JunkCache else {}))
    pieces = []
    for first, last in ((0, 3), (3, 6), (6, 7)):
        there = None if padding == "none" else counts[:, :last]
        there = {"attention_mask": there, "position_ids": positions[:, first:last]}
        pieces.append(model(input_ids=ids[:, first:last], past_key_values=cache, **there).logits)
    assert_near(torch.cat(pieces, 1)[real], expected[real], 1e-6)


# --- packed sequences -------------------------------------------------------------------------------------------------

LENGTHS = (3, 1, 5)
POSITIONS = torch.cat([torch.arange(n) for n in LENGTHS])[None]
CU_SEQLENS = torch.tensor([0, 3, 4, 9], dtype=torch.int32)
SAID_BY = {
    "positions": {"use_cache": False},
    "positions, with a cache": {"use_cache": True},
    "positions, with a mask of ones": {"attention_mask": torch.ones(1, 9, dtype=torch.int64)},
    "positions and lengths": {"cu_seq_lens_q": CU_SEQLENS, "cu_seq_lens_k": CU_SEQLENS, "max_length_q": 5},
}


@pytest.mark.parametrize("said_by", SAID_BY)
@every_decoder
def test_packed_sequences(family, said_by):
    model, ids = make(family, "fwm_dpfp1"), tokens(1, 9)
    packed = model(input_ids=ids, position_ids=POSITIONS, **SAID_BY[said_by]).logits
    apart = torch.cat([model(input_ids=piece).logits for piece in ids.split(LENGTHS, 1)], 1)
    assert_near(packed, apart, 1e-6)


def test_packed_rows():
    """Of two sequences each; positions of one row stand for both."""
    model, ids = make("llama", "fwm_dpfp1"), tokens(2, 9)
    apart = torch.cat([model(input_ids=piece).logits for piece in ids.split(LENGTHS, 1)], 1)
    for options in ({"use_cache": False}, {"use_cache": True}):
        assert_near(model(input_ids=ids, position_ids=POSITIONS, **options).logits, apart, 1e-6)


ARGUMENTS = {
    "cu_seq_lens_q": torch.tensor([0, 3, 4, 9, 12, 13, 18]),
    "seq_idx": torch.tensor([[0] * 3 + [1] + [2] * 5] * 2),
    "position_ids": POSITIONS,
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_packed_by_an_argument(name, padded):
    """Two rows of three sequences each; positions begin anew in padding too, and then say nothing."""
    inputs = drawn(2, 4, 2, 9, 9, 6, 3)
    mask, sees = case(9, 0, 0, True, padded)
    if name != "position_ids" or not padded:
        number = torch.arange(3).repeat_interleave(torch.tensor(LENGTHS))
        sees = sees & (number[:, None] == number)
    o = ATTENTIONS["fwm_elu1"](Layer(True), *inputs, mask, **{name: ARGUMENTS[name]})[0]
    assert_near(o, dense("fwm_elu1", *inputs, sees), 1e-10)


# --- the functions by themselves --------------------------------------------------------------------------------------


# T, keys before (all keys, where there is no order), room of a cache, order
CALLS = [(5, 0, 0, True), (5, 4, 0, True), (5, 4, 3, True), (5, 0, 3, True), (1, 6, 0, True), (1, 6, 3, True)]
CALLS += [(5, 8, 0, False), (1, 8, 0, False), (70, 0, 0, True), (70, 70, 2, True)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("T, n, room, causal", CALLS)
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients(name, T, n, room, causal, padded):
    """HQ = 4 query heads share H = 2 key heads; what padding and room hold is seen by nobody."""
    mask, sees = case(T, n, room, causal, padded)
    inputs = drawn(2, 4, 2, T, sees.shape[-1], 6, 3)
    expected = dense(name, *inputs, sees)
    weights = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape)
    of_expected = torch.autograd.grad((expected * weights).sum(), inputs)
    nobody = (~sees.any(2))[..., None]  # (B, 1, S, 1)
    with torch.no_grad():
        inputs[1].masked_fill_(nobody, 1e6)
        inputs[2].masked_fill_(nobody, torch.nan)
    got, nothing = ATTENTIONS[name](Layer(causal), *inputs, mask, scaling=0.3)
    assert nothing is None and got.is_contiguous() and got.shape == (2, T, 4, 3)
    assert_near(got, expected, 1e-10)
    for ours, theirs in zip(torch.autograd.grad((got * weights).sum(), inputs), of_expected):
        assert_near(ours, theirs, 1e-9)
    assert not got[~sees.any(-1)[:, 0]].any()  # who sees nothing reads 0


@pytest.mark.parametrize("T, n, room, causal", CALLS[:7])
def test_gradients_by_differences(T, n, room, causal):
    mask, sees = case(T, n, room, causal, True)
    inputs = drawn(2, 2, 1, T, sees.shape[-1], 3, 2)
    assert torch.autograd.gradcheck(lambda *x: ATTENTIONS["fwm_elu1"](Layer(causal), *x, mask)[0], inputs)


@pytest.mark.parametrize("T, n, room, causal", CALLS)
def test_no_mask_where_nothing_is_hidden(T, n, room, causal):
    """A mask would copy keys and values; a token behind a cache has none, more tokens have one that says how many."""
    assert (case(T, n, room, causal, False)[0] is None) == (not causal or (room == 0 and (n == 0 or T == 1)))
    options = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    assert key_mask(2, T, T, **options).all() and case(T, n, room, causal, True)[0] is not None


def test_a_mask_shorter_than_the_keys():
    """The last keys are hidden, as transformers has it."""
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert torch.equal(
        key_mask(1, 2, 5, q_offset=3, attention_mask=mask), sdpa_mask(1, 2, 5, 3, attention_mask=mask)[:, 0, 1]
    )


@pytest.mark.parametrize("causal", [False, True])
def test_order_by_argument(causal):
    inputs = drawn(1, 2, 2, 4, 4, 3, 2)
    sees = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    o = ATTENTIONS["fwm_elu1"](Layer(not causal), *inputs, None, is_causal=causal)[0]
    assert_near(o, dense("fwm_elu1", *inputs, sees.tril() if causal else sees), 1e-10)


def test_a_query_that_sees_no_key():
    mask = key_mask(1, 4, 4, attention_mask=torch.tensor([[False, False, True, True]]))
    inputs = drawn(1, 2, 2, 4, 4, 3, 2)
    o = ATTENTIONS["fwm_elu1"](Layer(True), *inputs, mask)[0]
    assert not o[:, :2].any() and o[:, 2:].all()
    assert all(x.isfinite().all() for x in torch.autograd.grad(o.sum(), inputs))
    mask = key_mask(1, 1, 4, q_offset=3, attention_mask=torch.zeros(1, 4, dtype=torch.bool))
    assert not ATTENTIONS["fwm_elu1"](Layer(True), inputs[0][:, :, :1], *inputs[1:], mask)[0].any()


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_other_numbers(dtype, tolerance):
    mask, sees = case(5, 4, 0, True, True)
    inputs = drawn(2, 4, 2, 5, sees.shape[-1], 6, 3, dtype=dtype)
    o = ATTENTIONS["fwm_elu1"](Layer(True), *inputs, mask)[0]
    assert o.dtype == dtype
    assert_near(o, dense("fwm_elu1", *(x.double() for x in inputs), sees), tolerance)


# --- training ---------------------------------------------------------------------------------------------------------


def trained(model, given, steps):
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        loss = model(**given).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("family", ["marian", "llama"])
def test_training(family):
    """With activations computed again: step by step the losses of dense weights, and they fall."""
    model, (given, _) = make(family, "fwm_dpfp1", dropout=0.0).train(), batch(family, "right")
    expected = trained(like(model, "dense_fwm_dpfp1"), given, 12)
    model.activation_checkpointing_enable()
    losses = trained(model, given, 12)
    assert_near(losses, expected, 1e-5)
    assert losses[-1] < 0.9 * losses[0]


# --- what is around it ------------------------------------------------------------------------------------------------


def test_names():
    assert NAMES == bridge.register_attention() == ("fwm_elu1", "fwm_dpfp1", "fwm_dpfp2", "fwm_dpfp3")
    for name in NAMES:
        assert AttentionInterface()[name] is ATTENTIONS[name] and AttentionMaskInterface()[name] is key_mask


def test_with_the_kernels_of_enable():
    """In the softmax layers of a family of theirs, before and after."""
    model, ids = tiny_models.make("qwen3_next"), tiny_models.tokens()
    softmax = model(ids).logits
    model.set_attn_implementation("fwm_elu1")
    linear = model(ids).logits
    with bridge.enabled():
        assert_near(model(ids).logits, linear, 1e-4)
        model.set_attn_implementation("sdpa")
        assert_near(model(ids).logits, softmax, 1e-4)
        model.set_attn_implementation("fwm_elu1")
    assert torch.equal(model(ids).logits, linear)
    assert (linear - softmax).abs().max() > 0.01


def test_compiled():
    model, (given, real) = make("llama", "fwm_dpfp1", torch.float32, num_hidden_layers=1), batch("llama", "left")
    expected = model(**given).logits[real]
    compiled = Compiled(model, fullgraph=True)
    assert_near(compiled(**given).logits[real], expected, 1e-5)
    assert {"feature_map", "rule"} <= compiled.operators
    with pytest.raises(RuntimeError, match="position_ids: got packed sequences"):
        compiled(input_ids=tokens(1, 9), position_ids=POSITIONS)


# --- what is refused --------------------------------------------------------------------------------------------------


def refused(name, call):
    with pytest.raises(ValueError, match=rf"^{re.escape(name)}: got .*, expected ") as caught:
        call()
    assert "\n" not in str(caught.value)


ASKED = {
    "dropout": 0.1,
    "sliding_window": 4,
    "softcap": 30.0,
    "s_aux": torch.zeros(2),
    "position_bias": torch.zeros(1, 2, 3, 3),
    "output_attentions": True,
    "cache": object(),
    "indices": torch.zeros(1, 3, 2),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_an_attention_is_asked_for(name):
    inputs = drawn(1, 2, 2, 3, 3, 4, 4)
    refused(name, lambda: ATTENTIONS["fwm_elu1"](Layer(True), *inputs, None, **{name: ASKED[name]}))
    for nothing in (None, False) if name != "dropout" else (0.0,):
        ATTENTIONS["fwm_elu1"](Layer(True), *inputs, None, **{name: nothing})


ONES = torch.ones(1, 3, dtype=torch.bool)

# masks of 3 queries and 3 keys, and whether the layer is causal
MASKS = {
    "sdpa's": (ONES.expand(3, 3).tril()[None, None], True),
    "eager's": (torch.zeros(1, 1, 3, 3), True),
    "integers": (ONES.long(), True),
    "of another batch": (ONES.expand(2, 3), True),
    "shorter than the queries": (ONES[:, :2], True),
    "longer than the keys": (torch.ones(1, 4, dtype=torch.bool), True),
    "causal in a layer that is not": (ONES, False),
    "without order in a layer that is causal": (ONES[None], True),
    "of another number of keys": (ONES[None, :, :2], False),
    "packed in a layer that is not causal": (torch.tensor([0, 1, 3]), False),
}


@pytest.mark.parametrize("which", MASKS)
def test_masks_of_others(which):
    mask, causal = MASKS[which]
    inputs = drawn(1, 2, 2, 3, 3, 4, 4)
    refused("attention_mask", lambda: ATTENTIONS["fwm_elu1"](Layer(causal), *inputs, mask))


def test_keys_whose_order_nobody_says():
    inputs = drawn(1, 2, 2, 3, 5, 4, 4)
    refused("attention_mask", lambda: ATTENTIONS["fwm_elu1"](Layer(True), *inputs, None))
    for name in ("cu_seq_lens_q", "seq_idx"):
        packed = {name: torch.tensor([0, 3]) if name == "cu_seq_lens_q" else torch.zeros(1, 3, dtype=torch.int64)}
        for causal in (True, False):
            mask = torch.ones(1, 5, dtype=torch.bool) if causal else None
            refused(name, lambda: ATTENTIONS["fwm_elu1"](Layer(causal), *inputs, mask, **packed))


def test_other_devices():
    inputs = [x.to("meta") for x in drawn(1, 2, 2, 3, 3, 4, 4)]
    refused("query", lambda: ATTENTIONS["fwm_elu1"](Layer(True), *inputs, None))


def prefix(batch_idx, head_idx, q_idx, kv_idx):
    return kv_idx < 2


packed = and_masks(causal_mask_function, packed_sequence_mask_function(torch.tensor([[0, 0, 0, 1, 1]])))

PATTERNS = {
    "a prefix seen by all": ("mask_function", {"mask_function": or_masks(causal_mask_function, prefix)}),
    "packed sequences, padded": (
        "mask_function",
        {"mask_function": packed, "attention_mask": torch.tensor([[True, True, False, True, True]])},
    ),
    "packed sequences behind a cache": ("mask_function", {"mask_function": packed, "kv_length": 7, "q_offset": 2}),
    "a window": ("sliding_window or attention_chunk_size", {"local_size": 3}),
    "a cache that has forgotten": ("sliding_window or attention_chunk_size", {"kv_offset": 1}),
    "a mask longer than the keys": ("attention_mask", {"attention_mask": torch.ones(1, 6, dtype=torch.bool)}),
    "three axes": ("attention_mask", {"attention_mask": torch.ones(1, 1, 5, dtype=torch.bool)}),
}


@pytest.mark.parametrize("which", PATTERNS)
def test_patterns(which):
    name, options = PATTERNS[which]
    refused(name, lambda: key_mask(**{"batch_size": 1, "q_length": 5, "kv_length": 5} | options))


def test_models_that_ask_for_more():
    ids = tokens(1, 5)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2} | IDS
    small |= {"num_key_value_heads": 2}
    window = "sliding_window or attention_chunk_size"
    for kind, config, name in (
        (transformers.MistralForCausalLM, transformers.MistralConfig(**small, sliding_window=16), window),
        (transformers.Gemma2ForCausalLM, transformers.Gemma2Config(**small, head_dim=8), window),
        (
            transformers.T5ForConditionalGeneration,
            transformers.T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0, **IDS),
            "position_bias",
        ),
        (
            transformers.BloomForCausalLM,
            transformers.BloomConfig(hidden_size=16, n_layer=1, n_head=2, **IDS),
            "attn_implementation",
        ),
    ):
        model = kind._from_config(config, attn_implementation="fwm_elu1")
        given = {"decoder_input_ids": ids} if name == "position_bias" else {}
        refused(name, lambda: model(input_ids=ids, **given))
    refused("dropout", lambda: make("gpt2", attn_pdrop=0.1).train()(input_ids=ids))
    refused("output_attentions", lambda: make("bart")(input_ids=ids, output_attentions=True))
    refused("attention_mask", lambda: make("llama")(input_ids=ids, attention_mask=torch.zeros(1, 1, 5, 5)))
    packed = {"cu_seq_lens_q": torch.tensor([0, 2, 5]), "cu_seq_lens_k": torch.tensor([0, 2, 5])}
    refused("cu_seq_lens_q", lambda: make("marian")(input_ids=ids, decoder_input_ids=ids, **packed))
