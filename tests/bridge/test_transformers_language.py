"""Language models of `fwm_py` in transformers: saved and loaded, padded, generated from, trained, evaluated."""

import copy
import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("accelerate")

import torch
import transformers
from support.commands import run_here
from support.texts import write_documents
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fwm_py.experiments.language import Data, Settings, load_model, make_model, prepare, train
from fwm_py.transformers import FwmCache, FwmConfig, FwmForCausalLM

VOCAB = 50
KINDS = {
    "delta": {"rule": "delta", "feature_map": "dpfp1"},
    "gated delta": {"rule": "gated_delta", "feature_map": "none", "conv_size": 4, "kv_heads": 2},
    "sum": {"rule": "sum", "feature_map": "favor8", "normalize": True, "norm": "post", "init": "normal"},
    "fwm": {"rule": "fwm", "positions": "none"},
    "softmax": {"rule": "softmax", "feature_map": "none"},
    "rotary": {"rule": "softmax", "feature_map": "none", "positions": "rotary"},
}
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7, [0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]])


def make(kind="delta", **options):
    torch.manual_seed(3)
    sizes = {"vocab_size": VOCAB, "d_model": 16, "heads": 4, "layers": 2, "d_ff": 32}
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return FwmForCausalLM(FwmConfig(**sizes, **ends, **KINDS[kind], **options)).double().eval()


def draw_tokens(*shape, seed=0):
    return torch.randint(1, VOCAB, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=KINDS)
def model(request):
    return make(request.param)


def greedy(model, tokens, n):
    """The n likeliest tokens, each from the whole text before it."""
    tokens = list(tokens)
    for _ in range(n):
        tokens.append(int(model.model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens


# ---- what it computes ----


def test_logits_and_loss(model):
    tokens = draw_tokens(3, 7)
    output = model(tokens, labels=tokens)
    logits = model.model(tokens)
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, VOCAB), tokens[:, 1:].reshape(-1))
    torch.testing.assert_close(output.logits, logits, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(output.loss.double(), loss, rtol=1e-5, atol=0)  # transformers' loss is in float32
    last = model(tokens, logits_to_keep=2, return_dict=False)
    torch.testing.assert_close(last[0], logits[:, -2:], rtol=1e-12, atol=1e-13)
    some = model(tokens, labels=tokens, num_items_in_batch=9)
    torch.testing.assert_close(some.loss.double(), loss * 18 / 9, rtol=1e-5, atol=0)


def test_saved_and_loaded(model, tmp_path):
    tokens = draw_tokens(3, 7)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is FwmForCausalLM and loaded.dtype == torch.float64 and not loaded.training
    assert loaded.config.to_dict() == AutoConfig.from_pretrained(tmp_path).to_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=1e-12, atol=1e-13)


def test_begins_as_a_decoder_does():
    torch.manual_seed(5)
    ours = FwmForCausalLM(FwmConfig(vocab_size=VOCAB, init="normal")).state_dict()
    torch.manual_seed(5)
    for name, tensor in make_model(Settings(init="normal"), VOCAB).state_dict().items():
        assert torch.equal(ours[f"model.{name}"], tensor)


# ---- padding ----


@pytest.mark.parametrize("use_cache", [True, False])
def test_padding_is_not_read(model, use_cache):
    """Before the tokens, or behind them: each row's logits are those of the row alone, whatever stands there."""
    for mask in (MASK, MASK.flip(1)):
        tokens, others = draw_tokens(4, 7), draw_tokens(4, 7, seed=1)
        logits = model(tokens, attention_mask=mask, use_cache=use_cache).logits
        changed = model(torch.where(mask == 1, tokens, others), attention_mask=mask, use_cache=use_cache).logits
        for row, there, found, again in zip(tokens, mask.bool(), logits, changed):
            assert torch.equal(found[there], again[there])
            torch.testing.assert_close(found[there], model.model(row[there][None])[0], rtol=1e-11, atol=1e-12)


def test_gradients_with_padding(model):
    tokens = draw_tokens(4, 7)
    model.train()
    labels = tokens.masked_fill(MASK == 0, -100)
    model(tokens, attention_mask=MASK, labels=labels).loss.backward()
    found = {name: x.grad.clone() for name, x in model.named_parameters()}
    model.zero_grad()
    rows = [model.model(row[there][None])[0, :-1] for row, there in zip(tokens, MASK.bool())]
    wanted = torch.cat([row[there][1:] for row, there in zip(tokens, MASK.bool())])
    torch.nn.functional.cross_entropy(torch.cat(rows), wanted).backward()
    for name, x in model.named_parameters():
        torch.testing.assert_close(found[name], x.grad, rtol=1e-4, atol=1e-6)  # a loss in float32


# ---- generate ----


def test_greedy(model):
    """From states, of unequal texts: as from the whole text of each row alone."""
    tokens = draw_tokens(4, 7)
    found = model.generate(tokens, attention_mask=MASK, max_new_tokens=6, do_sample=False, eos_token_id=None)
    for row, there, made in zip(tokens, MASK.bool(), found):
        assert made[7:].tolist() == greedy(model, row[there].tolist(), 6)[-6:]


def test_beams(model):
    tokens = draw_tokens(4, 7)
    options = {"attention_mask": MASK, "max_new_tokens": 6, "do_sample": False, "num_beams": 3}
    scored = {"return_dict_in_generate": True, "output_scores": True}
    with_states = model.generate(tokens, **options, **scored)
    without = model.generate(tokens, use_cache=False, **options, **scored)
    assert torch.equal(with_states.sequences, without.sequences)
    torch.testing.assert_close(with_states.sequences_scores, without.sequences_scores, rtol=1e-9, atol=0)


def test_sampling_with_several_continuations(model):
    options = {"max_new_tokens": 5, "do_sample": True, "num_return_sequences": 3, "attention_mask": MASK}
    found = []
    for use_cache in (True, False):
        torch.manual_seed(2)
        found.append(model.generate(draw_tokens(4, 7), use_cache=use_cache, **options))
    assert torch.equal(*found) and found[0].shape == (12, 12)


@torch.no_grad()
def test_a_cache_goes_on(model):
    """In pieces, one of which is padding for some rows; after a turn of generation; and from a copy."""
    tokens = draw_tokens(4, 7)
    whole = model(tokens, attention_mask=MASK).logits
    cache, parts = FwmCache(), []
    for piece in (slice(0, 3), slice(3, 4), slice(4, 7)):
        before = copy.deepcopy(cache)
        output = model(tokens[:, piece], attention_mask=MASK[:, : piece.stop], past_key_values=cache)
        again = model(tokens[:, piece], attention_mask=MASK[:, piece], past_key_values=before)  # or the piece's own
        assert output.past_key_values is cache and cache.get_seq_length() == piece.stop
        torch.testing.assert_close(again.logits, output.logits, rtol=1e-12, atol=1e-13)
        parts.append(output.logits)
    there = MASK.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[there], whole[there], rtol=1e-11, atol=1e-12)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    first = model.generate(tokens, attention_mask=MASK, return_dict_in_generate=True, **options)
    mask = torch.cat([MASK, torch.ones(4, 3, dtype=torch.int64)], 1)
    second = model.generate(
        first.sequences, attention_mask=mask, past_key_values=first.past_key_values, prefill_chunk_size=2, **options
    )
    assert torch.equal(second, model.generate(first.sequences, attention_mask=mask, **options))


def test_states_take_the_place_of_keys():
    """A state has as many numbers after many tokens as after one."""
    model = make("delta")
    sizes = []
    for T in (1, 40):
        cache = model(draw_tokens(2, T)).past_key_values
        sizes.append(sum(x.numel() for group in cache.groups for x in group.state.tensors().values()))
    assert sizes[0] == sizes[1] > 0


def test_rows_without_tokens():
    model = make("delta")
    tokens, mask = draw_tokens(2, 3), torch.tensor([[0, 0, 0], [0, 1, 1]])
    output = model(tokens, attention_mask=mask)
    assert output.logits.isfinite().all()
    following = model(tokens[:, :1], past_key_values=output.past_key_values).logits
    torch.testing.assert_close(following[:1], model.model(tokens[:1, :1]), rtol=1e-11, atol=1e-12)


def test_new_tokens():
    model = make("delta", init="normal")
    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    assert model(torch.tensor([[VOCAB + 2]])).logits.shape == (1, 1, VOCAB + 3)
    assert 0 < model.model.embed.weight[VOCAB:].std() < 0.1


# ---- training and evaluation by others ----


def test_trainer(tmp_path):
    """Learns to count on, from rows of unequal lengths; a checkpoint goes on."""
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    config = FwmConfig(vocab_size=12, d_model=16, heads=2, layers=1, d_ff=32, rule="delta")
    rows = [torch.arange(first, first + 5 + first % 3) % 10 + 1 for first in range(10)] * 8

    def collate(batch):
        tokens = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        return {
            "input_ids": tokens,
            "attention_mask": (tokens > 0).long(),
            "labels": tokens.masked_fill(tokens == 0, -100),
        }

    def trained(steps, **resume):
        options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 10, "save_steps": 30}
        options |= {"learning_rate": 1e-2, "lr_scheduler_type": "constant", "remove_unused_columns": False}
        arguments = TrainingArguments(str(tmp_path), max_steps=steps, per_device_train_batch_size=8, **options)
        torch.manual_seed(1)
        trainer = Trainer(FwmForCausalLM(config), arguments, train_dataset=rows, data_collator=collate)
        trainer.train(**resume)
        return trainer

    whole = trained(60)
    losses = [row["loss"] for row in whole.state.log_history if "loss" in row]
    assert losses[-1] < 0.2 < losses[0]
    assert whole.model.eval().generate(torch.tensor([[3, 4]]), max_new_tokens=3, do_sample=False).tolist() == [
        [3, 4, 5, 6, 7]
    ]
    resumed = trained(60, resume_from_checkpoint=str(tmp_path / "checkpoint-30"))
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the data of a Markov chain's letters, and a run."""
    folder = tmp_path_factory.mktemp("language")
    write_documents(folder / "texts", n=40, length=200)
    data = prepare([folder / "texts"], folder / "data", vocab=260)
    settings = Settings(layers=1, d_model=16, heads=2, d_ff=16, seq_len=16, max_tokens=400)
    train(settings, data, folder / "run")
    done = run_here("language", "convert", "run", "--out", "converted", "--threads", "1", cwd=folder)
    assert done.returncode == 0 and "converted: AutoModelForCausalLM.from_pretrained" in done.stdout
    return folder


def test_convert(run):
    data = Data.open(run / "data")
    decoder, settings = load_model(run / "run")
    model = AutoModelForCausalLM.from_pretrained(run / "converted")
    tokenizer = AutoTokenizer.from_pretrained(run / "converted")
    text = "abc<|endoftext|> d"
    assert tokenizer(text)["input_ids"] == data.tokenizer.encode(text).ids  # the end's letters are letters, as in data
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id == data.end
    assert tokenizer.model_max_length == settings.seq_len == 16
    tokens = torch.tensor([tokenizer("abcabc")["input_ids"]])
    torch.testing.assert_close(model(tokens).logits, decoder(tokens), rtol=1e-5, atol=1e-6)
    again = run_here("language", "convert", "run", "--out", "converted", cwd=run)
    assert again.returncode != 0 and again.stderr.count("\n") == 1 and "expected a new or an empty one" in again.stderr


def test_a_converted_run_loads_by_its_path_alone(run):
    program = """
import sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("converted", trust_remote_code=True)
assert "fwm_py.transformers" in sys.modules and type(model).__name__ == "FwmForCausalLM"
"""
    environment = {"HF_HOME": str(run / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=run, capture_output=True, text=True, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr


def test_harness(run):
    """lm-evaluation-harness scores texts as the decoder does, and has it write."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    decoder, settings = load_model(run / "run")
    tokenizer = AutoTokenizer.from_pretrained(run / "converted", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(run / "converted")
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, device="cpu")
    assert harness.max_length == settings.seq_len

    def requests(kind, arguments):
        return [Instance(request_type=kind, doc={}, arguments=one, idx=i) for i, one in enumerate(arguments)]

    pairs = [("ab", "cab"), ("b", "ca"), ("abcab", "c")]
    found = harness.loglikelihood(requests("loglikelihood", pairs))
    for (context, following), (score, _) in zip(pairs, found):
        start = len(tokenizer(context)["input_ids"])
        tokens = torch.tensor(tokenizer(context + following)["input_ids"])
        logs = decoder(tokens[None])[0, :-1].double().log_softmax(-1)[torch.arange(len(tokens) - 1), tokens[1:]]
        assert score == pytest.approx(logs[start - 1 :].sum().item(), rel=1e-5)
    options = {"until": ["\n\n"], "max_gen_toks": 4, "do_sample": False}
    written = harness.generate_until(requests("generate_until", [("abca", options), ("b", options)]))
    for context, text in zip(("abca", "b"), written):
        ids = tokenizer(context)["input_ids"]
        assert text == tokenizer.decode(greedy(model, ids, 4)[len(ids) :], skip_special_tokens=True)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"rule": "sums"}, "rule"),
        ({"feature_map": "elu"}, "feature_map"),
        ({"heads": 5}, "heads"),
        ({"layers": 0}, "layers"),
        ({"normalize": True, "feature_map": "none"}, "normalize"),
        ({"rul": "delta"}, "rul"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_configurations_that_are_refused(options, name):
    with pytest.raises(ValueError, match=f"^{name}: got .*, expected "):
        FwmConfig(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"input_ids": [[1, 2]]}, TypeError, "input_ids: got "),
        ({"input_ids": torch.tensor([1, 2])}, ValueError, "input_ids: got "),
        ({"input_ids": torch.tensor([[1, VOCAB]])}, ValueError, "input_ids: got tokens from 1 to 50"),
        ({"attention_mask": [[1, 1, 1]]}, TypeError, "attention_mask: got "),
        ({"attention_mask": torch.ones(2, 3)[:1]}, ValueError, "attention_mask: got shape"),
        ({"attention_mask": torch.tensor([[1, 0, 1], [1, 1, 1]])}, ValueError, "attention_mask: got zeros between"),
        ({"attention_mask": torch.full((2, 3), 2)}, ValueError, "attention_mask: got other numbers"),
        ({"past_key_values": transformers.DynamicCache()}, TypeError, "past_key_values: got "),
        ({"output_hidden_states": True}, ValueError, "output_hidden_states: got True"),
        ({"inputs_embeds": torch.ones(2, 3, 16)}, ValueError, "inputs_embeds: got "),
        ({"position_ids": torch.ones(2, 3)}, ValueError, "position_ids: got "),
    ],
)
def test_calls_that_are_refused(options, error, message):
    with pytest.raises(error, match=f"^{message}.*, expected "):
        make()(**{"input_ids": draw_tokens(2, 3), **options})


def test_a_cache_of_other_rows_and_a_file_without_numbers(tmp_path):
    model = make()
    cache = model(draw_tokens(3, 2)).past_key_values
    with pytest.raises(ValueError, match=r"^past_key_values: got a cache of 3 rows, expected 2"):
        model(draw_tokens(2, 1), past_key_values=cache)
    from safetensors.torch import load_file, save_file

    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"^LayerNorm: got a file without all of its numbers, expected a whole model"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"rule": "sums"}))
    with pytest.raises(ValueError, match=r"^rule: got 'sums', expected "):
        AutoModelForCausalLM.from_pretrained(tmp_path)
