"""Linear attention of transformers' models with dense weights, and the models and calls that it is compared on."""

import copy
import functools
import itertools

import torch
import transformers
from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, sdpa_mask
from transformers.modeling_utils import AttentionInterface

import fwm_py.transformers as bridge
from fwm_py.transformers.linear_attention import key_mask

NAMES = bridge.register_attention()
PAD, VOCABULARY = 0, 61

# --- the oracle: phi(q).phi(k) as a matrix (T, S), with transformers' own masks, never left out -----------------------


def features(name, x):
    if name == "fwm_elu1":
        return torch.nn.functional.elu(x) + 1
    r = torch.cat([x.relu(), (-x).relu()], -1)
    return torch.cat([r * r.roll(j, -1) for j in range(1, int(name[-1]) + 1)], -1)


def dense(name, q, k, v, sees):
    """q (B, HQ, T, K), k, v (B, H, S, .), sees (B, 1, T, S) -> (B, T, HQ, V)"""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    weights = (features(name, q) @ features(name, k).mT).masked_fill(~sees, 0)
    return (weights @ v / (weights.sum(-1, keepdim=True) + 1e-6)).transpose(1, 2)


def dense_attention(module, query, key, value, attention_mask, name, **others):
    return dense(name, query, key, value, attention_mask), None


def dense_mask(*args, allow_is_causal_skip=None, allow_is_bidirectional_skip=None, **options):
    return sdpa_mask(*args, **options, allow_is_causal_skip=False, allow_is_bidirectional_skip=False)


for name in NAMES:
    AttentionInterface.register(f"dense_{name}", functools.partial(dense_attention, name=name))
    AttentionMaskInterface.register(f"dense_{name}", dense_mask)

# --- models -----------------------------------------------------------------------------------------------------------

IDS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": None}
DECODER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER |= IDS | {"num_key_value_heads": 2, "max_position_embeddings": 64}
PAIR = {"d_model": 16, "decoder_start_token_id": PAD, "forced_eos_token_id": None, "max_position_embeddings": 64} | IDS
for side in ("encoder", "decoder"):
    PAIR |= {f"{side}_layers": 1, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 24}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "attn_pdrop": 0.0} | IDS

MODELS = {
    "marian": (transformers.MarianMTModel, transformers.MarianConfig, PAIR),
    "bart": (transformers.BartForConditionalGeneration, transformers.BartConfig, PAIR),
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, DECODER),
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config, GPT2),
}


def make(family, name="fwm_elu1", dtype=torch.float64, **changed):
    """In evaluation mode, with weights large enough for attention to matter."""
    kind, configuration, sizes = MODELS[family]
    model = kind._from_config(configuration(**sizes | changed), attn_implementation=name)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.to(dtype).eval()


def like(model, name):
    other = copy.deepcopy(model)
    other.set_attn_implementation(name)
    return other


def tokens(B, T, seed=1):
    return torch.randint(2, VOCABULARY, (B, T), generator=torch.Generator().manual_seed(seed))


# Which of 7 tokens of three sequences count.
PADDINGS = {
    "none": [[1] * 7] * 3,
    "right": [[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6],
    "left": [[0] * 3 + [1] * 4, [1] * 7, [0] * 6 + [1]],
    "middle": [[0, 1, 0, 1, 1, 0, 1], [1] * 7, [1, 0, 0, 0, 0, 0, 1]],
}


def batch(family, padding, ids=None):
    """Arguments of a call, and which of the outputs count: labels of an encoder-decoder are padded on the right."""
    counts = torch.tensor(PADDINGS[padding])
    given = {"input_ids": tokens(3, 7) if ids is None else ids, "attention_mask": counts}
    if family in ("llama", "gpt2"):
        return given | {"labels": given["input_ids"].masked_fill(counts == 0, -100)}, counts.bool()
    there = torch.tensor(PADDINGS["none" if padding == "none" else "right"])[:, :5]
    given |= {"decoder_attention_mask": there, "decoder_input_ids": tokens(3, 5, 3)}
    return given | {"labels": tokens(3, 5, 4).masked_fill(there == 0, -100)}, there.bool()


# --- calls of the functions by themselves -----------------------------------------------------------------------------


class Layer(torch.nn.Module):
    def __init__(self, is_causal):
        super().__init__()
        self.is_causal = is_causal


def drawn(B, HQ, H, T, S, K, V, seed=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((B, HQ, T, K), (B, H, S, K), (B, H, S, V))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def case(T, n, room, causal, padded, B=2):
    """Our mask, and what each query sees (B, 1, T, n + T + room), one pair after the other."""
    S = n + T + room if causal else n + room
    count = torch.ones(B, n + T if causal else S, dtype=torch.bool)
    if padded:
        count[0, :2], count[1, 1::2] = False, False
    sees = torch.zeros(B, 1, T, S, dtype=torch.bool)
    for b, t, j in itertools.product(range(B), range(T), range(count.shape[1])):
        sees[b, 0, t, j] = count[b, j] and (not causal or j <= n + t)
    options = {"batch_size": B, "q_length": T, "kv_length": S, "attention_mask": count if padded else None}
    if causal:
        return key_mask(**options, q_offset=torch.tensor(n) if room else n), sees
    return key_mask(**options, mask_function=bidirectional_mask_function, allow_is_bidirectional_skip=True), sees
