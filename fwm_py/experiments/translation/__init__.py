"""Translation with the maps of the paper in all attentions of an encoder-decoder.

    data = prepare("train.en", "train.de", "data")
    result = train(Settings(feature_map="elu1"), data, "run")
    model, settings = load_model("run")
    translate_texts(model, data, ["A sentence."])

`pip install 'fwm_py[translation]'`; docs/translation.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fwm_py.experiments.lazy import lazily
from fwm_py.experiments.translation.data import Data, prepare
from fwm_py.experiments.translation.settings import PRESETS, Settings

if TYPE_CHECKING:
    from fwm_py.experiments.translation.model import load_model, make_model
    from fwm_py.experiments.translation.run import train
    from fwm_py.experiments.translation.scores import score, translate_texts
    from fwm_py.experiments.translation.search import translate

_WHERE = {
    "load_model": "model",
    "make_model": "model",
    "score": "scores",
    "train": "run",
    "translate": "search",
    "translate_texts": "scores",
}

__all__ = [
    "PRESETS",
    "Data",
    "Settings",
    "load_model",
    "make_model",
    "prepare",
    "score",
    "train",
    "translate",
    "translate_texts",
]

__getattr__ = lazily(__name__, _WHERE, "translation")
