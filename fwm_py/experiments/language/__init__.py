"""Language models with any feature map and any rule: prepare a text, train, evaluate, generate, sweep.

Needs PyTorch, tokenizers and safetensors: pip install 'fwm_py[language]'.

    data = prepare(["stdlib"], "data")
    result = train(Settings(rule="delta", feature_map="elu1"), data, "run")
    model, settings = load_model("run")
    evaluate(model, data.tokens("test"), data.bytes["test"], seq_len=256, mode="sliding", stride=64)

A model with another memory is a `fwm_py.torch.nn.Decoder` of any module that is called as memory(x, state,
return_state=..).
"""

from typing import TYPE_CHECKING

from fwm_py.experiments.language.data import Data, prepare
from fwm_py.experiments.language.settings import PRESETS, Settings
from fwm_py.experiments.lazy import lazily

if TYPE_CHECKING:
    from fwm_py.experiments.language.model import load_model, make_model
    from fwm_py.experiments.language.run import train
    from fwm_py.experiments.language.sampling import generate
    from fwm_py.experiments.language.scores import Score, evaluate
    from fwm_py.experiments.language.sweeps import sweep

_WHERE = {
    "Score": "scores",
    "evaluate": "scores",
    "generate": "sampling",
    "load_model": "model",
    "make_model": "model",
    "sweep": "sweeps",
    "train": "run",
}

__all__ = [
    "PRESETS",
    "Data",
    "Score",
    "Settings",
    "evaluate",
    "generate",
    "load_model",
    "make_model",
    "prepare",
    "sweep",
    "train",
]

__getattr__ = lazily(__name__, _WHERE, "language")
