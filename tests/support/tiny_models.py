"""Tiny random models of every family that `fwm_py.transformers` serves, as the installed transformers builds them."""

import copy
import importlib

import pytest
import torch

import fwm_py.transformers as bridge

COMMON = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "max_position_embeddings": 512,
}
LAYERS = ["linear_attention", "full_attention"]
GATED = {
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": LAYERS,
}
LATENT = {"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "mamba_chunk_size": 16,
    "mamba_proj_bias": True,
}
HYBRID = ["mamba", "attention"]
SHORT = {"layer_types": ["conv", "full_attention"]}
SHORT_EVERYWHERE = {
    "head_dim": 16,
    "swa_num_attention_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 16,
    "d_rel": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
}

VISION = {
    "depth": 1,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 16,
    "out_hidden_size": 32,
    "projection_intermediate_size": 16,
}

# family: the prefix of the classes' names, the configuration's suffix, what it takes
MODELS = {
    "qwen3_next": ("Qwen3Next", "Config", GATED | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16}),
    "qwen3_5": ("Qwen3_5", "TextConfig", GATED),
    "qwen3_5_moe": (
        "Qwen3_5Moe",
        "TextConfig",
        GATED | EXPERTS | {"num_experts": 4, "shared_expert_intermediate_size": 16},
    ),
    "qwen4_exp": (
        "Qwen4Exp",
        "TextConfig",
        GATED
        | EXPERTS
        | {
            "num_experts": 4,
            "shared_expert_intermediate_size": 16,
            "hc_lowrank": 8,
            "hc_count": 2,
            "ngram_vocab_size_base": 128,
            "split_ngram_parts": 1,
            "ple_layer_ids": [1],
            "ple_embed_dim": 16,
            "eos_token_id": 96,
            "heads_per_ngram": 2,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 64,
            "indexer_compress_ratio": 8,
        },
    ),
    "olmo_hybrid": (
        "OlmoHybrid",
        "Config",
        {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
            "layer_types": LAYERS,
        },
    ),
    "kimi_linear": (
        "KimiLinear",
        "Config",
        LATENT | EXPERTS | {"num_local_experts": 4, "linear_head_dim": 8, "linear_num_heads": 3, "layer_types": LAYERS},
    ),
    "glm5_next": (
        "Glm5Next",
        "Config",
        LATENT
        | EXPERTS
        | {
            "n_routed_experts": 4,
            "linear_head_dim": 8,
            "linear_num_heads": 3,
            "layer_types": LAYERS,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 0,
            "index_topk": 64,
            "index_head_dim": 8,
            "index_n_heads": 2,
            "hc_mult": 2,
        },
    ),
    "bailing_hybrid": (
        "BailingHybrid",
        "Config",
        LATENT
        | EXPERTS
        | {"num_local_experts": 4, "n_group": 1, "topk_group": 1, "head_dim": 8, "layer_types": LAYERS},
    ),
    "mamba2": (
        "Mamba2",
        "Config",
        {
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "state_size": 12,
            "chunk_size": 16,
            "time_step_limit": (0.02, 0.6),
            "use_bias": True,
        },
    ),
    "bamba": ("Bamba", "Config", MAMBA2 | {"attn_layer_indices": [1]}),
    "falcon_h1": ("FalconH1", "Config", MAMBA2 | {"mamba_d_ssm": 64, "head_dim": 16, "mamba_rms_norm": True}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",
        "Config",
        MAMBA2 | {"num_local_experts": 0, "shared_intermediate_size": 16, "layer_types": HYBRID},
    ),
    "nemotron_h": (
        "NemotronH",
        "Config",
        {
            "layers_block_type": ["mamba", "attention", "mlp"],
            "mamba_num_heads": 8,
            "mamba_head_dim": 8,
            "ssm_state_size": 12,
            "n_groups": 2,
            "head_dim": 16,
            "chunk_size": 16,
            "mamba_proj_bias": True,
        },
    ),
    "zamba2": (
        "Zamba2",
        "Config",
        {
            "n_mamba_heads": 8,
            "mamba_d_state": 12,
            "mamba_ngroups": 2,
            "chunk_size": 16,
            "layers_block_type": ["linear_attention", "hybrid"],
            "adapter_rank": 8,
        },
    ),
    "lfm2": ("Lfm2", "Config", SHORT),
    "lfm2_moe": ("Lfm2Moe", "Config", SHORT | EXPERTS | {"num_experts": 4, "num_dense_layers": 2}),
    "lfm3": ("Lfm3", "Config", SHORT | {"head_dim": 16, "conv_bias": True}),
    "inkling": (
        "Inkling",
        "TextConfig",
        SHORT_EVERYWHERE | {"layer_types": ["hybrid_sliding", "hybrid"], "mlp_layer_types": ["dense", "dense"]},
    ),
    "inkling2": ("Inkling2", "TextConfig", SHORT_EVERYWHERE),
}


def make(family, seed=0, **changed):
    """A causal language model in evaluation mode."""
    prefix, suffix, sizes = MODELS[family]
    configuration = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    modelling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    sizes = COMMON | {"initializer_range": 0.3} | sizes | changed
    torch.manual_seed(seed)
    if hasattr(modelling, prefix + "ForCausalLM"):
        model = getattr(modelling, prefix + "ForCausalLM")(getattr(configuration, prefix + suffix)(**sizes))
    else:
        config = getattr(configuration, prefix + "Config")(text_config=sizes, vision_config=VISION)
        model = getattr(modelling, prefix + "ForConditionalGeneration")(config)
    model.set_experts_implementation("eager")  # the others take no float64
    return model.eval()


# --- what the tests of fwm_py.transformers share ----------------------------------------------------------------------

every_family = pytest.mark.parametrize("family", MODELS)
NO_FLOAT64 = ("inkling2",)  # sums its experts in float32
GATED_NORMS = {family: row.gated_norm for family, row in bridge.FAMILIES.items() if row.gated_norm}
MAMBA2_FAMILIES = [family for family, row in bridge.FAMILIES.items() if "mamba2_chunk_scan" in row.functions]


@pytest.fixture(autouse=True)
def disabled():
    bridge.disable()
    yield
    bridge.disable()


def modelling(family):
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


def tokens(B=2, T=37, seed=1):
    return torch.randint(2, 97, (B, T), generator=torch.Generator().manual_seed(seed))


def assert_near(got, expected, tolerance=1e-4):
    off, largest = (got - expected).abs().max(), expected.abs().max()
    assert off <= tolerance * largest, f"off by {off:.3g} where the largest is {largest:.3g}"


def training_step(model, ids):
    model.zero_grad()
    output = model(ids, labels=ids)
    output.loss.backward()
    return (
        output.logits.detach(),
        output.loss.detach(),
        {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None},
    )


def linear_layer(family):
    """The first layer that calls the rule, or, in a family without one, the convolution."""
    names = ("GatedDeltaNet", "DeltaAttention", "KimiDelta", "KDA", "LinearAttention", "Mixer", "MambaLayer")
    names += ("ShortConv",)
    modules = [
        module
        for module in make(family).modules()
        if isinstance(getattr(module, "conv", None) or getattr(module, "conv1d", None), torch.nn.Conv1d)
        or hasattr(module, "q_conv1d")
    ]
    return next(module for module in modules if any(name in type(module).__name__ for name in names))


def in_bfloat16(model):
    """A copy, without what transformers keeps in float32."""
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    originals = dict(model.named_parameters())
    for name, parameter in rounded.named_parameters():
        if any(kept in name for kept in model._keep_in_fp32_modules_strict or ()):
            parameter.data = originals[name].data.clone()
    return rounded


def operators_of(family):
    """Operators of ours that a model of the family calls."""
    return {"causal_conv1d", "rms_norm"} | ({"rule"} if len(bridge.FAMILIES[family].functions) > 2 else set())


class Compiled:
    """Compiles with aot_eager, and notes the operators of ours in the graphs."""

    def __init__(self, module, **options):
        torch._dynamo.reset()
        self.operators = set()
        self.compiled = torch.compile(module, backend=self.backend, **options)

    def backend(self, graph, inputs):
        self.operators |= {
            str(node.target).split(".")[1] for node in graph.graph.nodes if str(node.target).startswith("fwm_py.")
        }
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def __call__(self, *args, **options):
        return self.compiled(*args, **options)


class Subclass(torch.Tensor):
    """May mean something else by every operation."""
