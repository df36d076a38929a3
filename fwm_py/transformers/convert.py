"""A run of the language models as a folder that transformers loads by its path."""

from __future__ import annotations

import os
from typing import Any

from transformers import PreTrainedTokenizerFast

from fwm_py.experiments.bpe import END
from fwm_py.experiments.language.data import Data
from fwm_py.experiments.language.model import load_model
from fwm_py.experiments.language.settings import MODEL_SETTINGS
from fwm_py.experiments.prepared import TOKENIZER, new_folder
from fwm_py.transformers.language_models import FwmConfig, FwmForCausalLM

__all__ = ["convert"]

CODE = "modeling_fwm_py.py"
CLASSES = {"AutoConfig": "FwmConfig", "AutoModelForCausalLM": "FwmForCausalLM"}
FILES = (
    *("config.json", "generation_config.json", "model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", CODE),
)


def convert(run_folder: str | os.PathLike[str], data: Data, out: str | os.PathLike[str]) -> FwmForCausalLM:
    """Write a run's model and tokenizer as transformers does.

    `AutoModelForCausalLM.from_pretrained(out)` loads it after `import fwm_py.transformers`, and with
    trust_remote_code=True without: a file of the folder imports `fwm_py`. The tokenizer gives the tokens that the run
    was trained on: `<|endoftext|>` within a text is letters, as it was there. Its model_max_length is a segment of
    training, unless the run handed its states on.

    Parameters
    ----------
    run_folder : path
        Of a run that has ended.
    data : Data
        The data of the run.
    out : path
        A folder that is made; it may be there if it is empty. It is there when it is whole.

    Returns
    -------
    FwmForCausalLM

    Raises
    ------
    FileExistsError
        If `out` has files.
    Refused
        If another process writes this folder.
    OSError, ValueError
        As of `fwm_py.experiments.language.load_model`; or if the folder cannot be written.
    """
    decoder, settings = load_model(run_folder)
    options: dict[str, Any] = {name: getattr(settings, name) for name in MODEL_SETTINGS}
    options |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), data.end)
    options["auto_map"] = {kind: f"{CODE.removesuffix('.py')}.{name}" for kind, name in CLASSES.items()}
    model = FwmForCausalLM(FwmConfig(vocab_size=data.vocab_size, **options))
    model.train(False)
    model.model.load_state_dict(decoder.state_dict())
    longest = {} if settings.carry else {"model_max_length": settings.seq_len}
    words = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(data.folder / TOKENIZER), split_special_tokens=True, **words, **longest
    )
    with new_folder(out, FILES) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / CODE).write_text(f"from fwm_py.transformers import {', '.join(CLASSES.values())}  # noqa: F401\n")
    return model
