"""Small models of transformers with and without `fwm_py.transformers`, in turn in one run. Prints a Markdown table.

    python benchmarks/bench_transformers.py [--only WORD ...] [--threads 2] [--repeats 5] [--json FILE] [--quick]

Three kinds of work: a training step (B 2, T 1024: loss, gradients, SGD), a prefill (B 1, T 2048, no gradients) and 64
tokens decoded after a prefix of 16 (greedy); of Mamba-2 also the scan by itself, at the sizes of the models themselves
(B 1, T 2048). Times are medians over repetitions, in which the model runs as it comes, with the kernels, and with the
rule replaced by a copy of the values: the floor, which no faster rule can pass (Amdahl). Ratios are medians of the
repetitions' ratios. Each model has a process of its own, and each peak of memory, which is the resident memory's
during a first work less that before it (Linux).

Nobody is timed before the logits and every gradient equal those of the model as it comes to 1e-4 of their largest, or
are nearer to the same model in float64 where those are not so right.
"""

import argparse
import contextlib
import importlib
import json
import multiprocessing
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers

import fwm_py
import fwm_py.transformers as bridge

COMMON = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 512,
    "eos_token_id": None,
    "pad_token_id": None,
    "bos_token_id": None,
}
LAYERS = {"layer_types": ["linear_attention"] * 3 + ["full_attention"]}
GATED = LAYERS | {
    "head_dim": 64,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "linear_num_key_heads": 4,
    "linear_num_value_heads": 8,
}

# name: family, prefix of the classes, suffix of the configuration, sizes
MODELS = {
    "Qwen3-Next": ("qwen3_next", "Qwen3Next", "Config", GATED | {"mlp_only_layers": [0, 1, 2, 3]}),
    "Qwen3.5": ("qwen3_5", "Qwen3_5", "TextConfig", GATED),
    "OLMo-hybrid": (
        "olmo_hybrid",
        "OlmoHybrid",
        "Config",
        LAYERS
        | {
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 48,
            "linear_value_head_dim": 96,
        },
    ),
    "Kimi-Linear": (
        "kimi_linear",
        "KimiLinear",
        "Config",
        LAYERS
        | {
            "kv_lora_rank": 64,
            "qk_rope_head_dim": 32,
            "qk_nope_head_dim": 32,
            "v_head_dim": 64,
            "linear_head_dim": 64,
            "linear_num_heads": 4,
            "mlp_layer_types": ["dense"] * 4,
        },
    ),
    "Granite-4-H": (
        "granitemoehybrid",
        "GraniteMoeHybrid",
        "Config",
        {
            "layer_types": ["mamba"] * 3 + ["attention"],
            "num_local_experts": 0,
            "shared_intermediate_size": 512,
            "mamba_n_heads": 8,
            "mamba_d_head": 64,
            "mamba_d_state": 128,
        },
    ),
    "Nemotron-H": (
        "nemotron_h",
        "NemotronH",
        "Config",
        {
            "layers_block_type": ["mamba", "mlp", "mamba", "attention", "mlp", "mamba", "mlp"],
            "head_dim": 64,
            "mamba_num_heads": 16,
            "mamba_head_dim": 32,
            "ssm_state_size": 128,
            "n_groups": 8,
        },
    ),
}
SCANS = {  # heads, head size, groups, state size, chunk size of the models themselves
    "Granite-4-H": (48, 64, 1, 128, 256),
    "Nemotron-H": (64, 64, 8, 128, 128),
}


def make(name):
    family, prefix, suffix, sizes = MODELS[name]
    configuration = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
    torch.manual_seed(0)
    common = {key: size for key, size in COMMON.items() if not (key == "num_hidden_layers" and family == "nemotron_h")}
    config = getattr(configuration, prefix + suffix)(**common | sizes)
    return getattr(modelling(name), prefix + "ForCausalLM")(config)


def modelling(name):
    family = MODELS[name][0]
    return importlib.import_module(f"transformers.models.{family}.modeling_{family}")


# ---- the ways to compute ---------------------------------------------------------------------------------------------


def copy_rule(query, key, value, *args, initial_state=None, output_final_state=False, **options):
    """Values in place of what the rule computes, and zeros as its state."""
    state = (
        value.new_zeros(value.shape[0], value.shape[2], key.shape[3], value.shape[3]) if output_final_state else None
    )
    return value.clone(), state


def copy_scan(hidden_states, dt, A, B, *args, return_final_states=False, **options):
    """Values in place of what the scan computes, and zeros as its state."""
    (n, _, H, P), N = hidden_states.shape, B.shape[-1]
    return (
        (hidden_states.clone(), hidden_states.new_zeros(n, H, P, N)) if return_final_states else hidden_states.clone()
    )


COPIES = {
    "torch_chunk_gated_delta_rule": copy_rule,
    "torch_recurrent_gated_delta_rule": copy_rule,
    "chunk_kimi_delta_attention": copy_rule,
    "recurrent_kimi_delta_attention": copy_rule,
    "mamba2_chunk_scan": copy_scan,
    "mamba2_selective_state_update": lambda state, hidden_states, *args, **options: hidden_states.clone(),
}


@contextlib.contextmanager
def rule_is_a_copy(name):
    with bridge.enabled():
        module = modelling(name)
        ours = {rule: getattr(module, rule) for rule in COPIES if hasattr(module, rule)}
        for rule in ours:
            setattr(module, rule, COPIES[rule])
        try:
            yield
        finally:
            for rule, function in ours.items():
                setattr(module, rule, function)


def ways(name):
    return {
        "as it comes": contextlib.nullcontext,
        "with fwm_py": bridge.enabled,
        "the floor": lambda: rule_is_a_copy(name),
    }


# ---- the work --------------------------------------------------------------------------------------------------------


def work_of(name, model, quick):
    """A call for each kind of work."""
    short = 8 if quick else 1
    ids = torch.randint(4096, (2, 1024 // short), generator=torch.Generator().manual_seed(1))
    prompt = torch.randint(4096, (1, 2048 // short), generator=torch.Generator().manual_seed(2))
    optimiser = torch.optim.SGD(model.parameters(), 1e-6)

    def training_step():
        model.train()
        optimiser.zero_grad()
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimiser.step()

    @torch.no_grad()
    def prefill():
        model.eval()
        return model(prompt).logits

    @torch.no_grad()
    def decoding():
        model.eval()
        return model.generate(prompt[:, :16], max_new_tokens=64 // short, do_sample=False)

    works = {"training step": training_step, "prefill": prefill, "decoding": decoding}
    return works | (scans(name, quick) if name in SCANS else {})


def scans(name, quick):
    """The scan of Mamba-2 by itself, at the sizes of the models themselves."""
    H, P, G, N, chunk = SCANS[name]
    T, generator = 256 if quick else 2048, torch.Generator().manual_seed(3)
    x, dt, B, C = (
        torch.randn(1, T, *shape, generator=generator).requires_grad_() for shape in ((H, P), (H,), (G, N), (G, N))
    )
    A = -torch.arange(1, H + 1).float()
    options = {"D": torch.ones(H), "dt_bias": torch.zeros(H), "dt_softplus": True}

    def scan():
        return modelling(name).mamba2_chunk_scan(x, dt, A, B, C, chunk, **options)

    def with_gradients():
        scan().sum().backward()

    return {"scan": torch.no_grad()(scan), "scan with its gradients": with_gradients}


def results(name, model, way, quick):
    works = work_of(name, model, quick)
    with ways(name)[way]():
        logits = works["prefill"]()
        works["training step"]()
    return {"logits": logits, **{key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}}


def check(name, quick):
    """Equal to 1e-4 of the largest, or, where theirs are less right (some gradients of gates are), ours are nearer.

    Returns what of each side is farthest from the model in float64: how far, of its largest, and its name.
    """
    exact = results(name, make(name).double(), "with fwm_py", quick)
    ours, theirs = (results(name, make(name), way, quick) for way in ("with fwm_py", "as it comes"))
    errors = {"with fwm_py": [], "as it comes": []}
    for key, wanted in exact.items():
        off, their_off, apart = (
            ((x - y).abs().max() / wanted.abs().max()).item()
            for x, y in ((ours[key], wanted), (theirs[key], wanted), (ours[key], theirs[key]))
        )
        if not (off <= max(1e-4, 1.1 * their_off) and apart <= max(1e-4, 2 * their_off)):
            raise RuntimeError(f"{name}: {key} is off by {off:.1e} of the largest, theirs by {their_off:.1e}")
        errors["with fwm_py"].append((off, key))
        errors["as it comes"].append((their_off, key))
    return {way: max(found) for way, found in errors.items()}


def measure(name, threads, repeats, quick):
    """The number of parameters, seconds by work and way, and the largest errors."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    errors = check(name, quick)
    model = make(name)
    works = work_of(name, model, quick)
    seconds = {work: {way: [] for way in ways(name)} for work in works}
    for repetition in range(repeats + 1):  # the first is not counted
        for work, call in works.items():
            for way, context in ways(name).items():
                with context():
                    start = time.perf_counter()
                    call()
                    taken = time.perf_counter() - start
                if repetition:
                    seconds[work][way].append(taken)
    return sum(p.numel() for p in model.parameters()), seconds, errors


def resident(entry):
    with open("/proc/self/status") as status:
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(entry))


def peak(name, threads, work, way, quick):
    """Bytes."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    model = make(name)
    with ways(name)[way]():
        works = work_of(name, model, quick)
        before = resident("VmRSS")
        works[work]()
    return resident("VmHWM") - before


def in_a_process(function, *arguments):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


# ---- the table -------------------------------------------------------------------------------------------------------


def ratio(above, below):
    return statistics.median(a / b for a, b in zip(above, below))


def rows_of(name, threads, repeats, quick):
    parameters, seconds, errors = in_a_process(measure, name, threads, repeats, quick)
    for work in seconds:
        theirs, ours, floor = seconds[work].values()
        memory = (
            [in_a_process(peak, name, threads, work, way, quick) for way in ("as it comes", "with fwm_py")]
            if work != "decoding"
            else None
        )
        yield {
            "model": name,
            "parameters": parameters,
            "work": work,
            "seconds": seconds[work],
            "memory": memory,
            "errors": errors,
            "faster": ratio(theirs, ours),
            "at most": ratio(theirs, floor),
        }


def cells(row):
    times = [f"{1e3 * statistics.median(seconds):.4g}" for seconds in row["seconds"].values()]
    memory = [f"{n / 1e6:.0f}" for n in row["memory"]] if row["memory"] else ["", ""]
    return [
        f"{row['model']}, {row['parameters'] / 1e6:.1f} M",
        row["work"],
        *times,
        f"{row['faster']:.2f}",
        f"{row['at most']:.2f}",
        *memory,
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", default=[""], help="models whose name holds one of the words"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write all that was measured, in seconds and bytes"
    )
    parser.add_argument("--quick", action="store_true", help="short sequences: see whether everything runs")
    args = parser.parse_args()
    processor = platform.processor() or platform.machine()
    print(
        f"{processor}; {args.threads} threads; PyTorch {torch.__version__}, transformers {transformers.__version__}, "
        f"fwm_py {fwm_py.__version__} ({fwm_py.build_info()['variant']}).\n"
    )
    rows = [
        row
        for name in MODELS
        if any(word in name for word in args.only)
        for row in rows_of(name, args.threads, args.repeats, args.quick)
    ]
    header = [
        "model",
        "work",
        "as it comes, ms",
        "with fwm_py, ms",
        "rule a copy, ms",
        "faster",
        "at most",
        "MB as it comes",
        "MB with fwm_py",
    ]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * 2 + "---:|" * (len(header) - 2))
    for row in rows:
        print("| " + " | ".join(cells(row)) + " |")
    print("\nFarthest from the same model in float64, of logits and gradients, as a share of its largest:")
    for name, errors in {row["model"]: row["errors"] for row in rows}.items():
        print(f"{name}: " + "; ".join(f"{way} {off:.1e} ({key})" for way, (off, key) in errors.items()))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
