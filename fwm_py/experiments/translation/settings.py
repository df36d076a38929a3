"""The settings of a translation's run: everything that determines it but the data."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from fwm_py.checks import shown
from fwm_py.experiments.settings import TrainingSettings
from fwm_py.experiments.words import memory_options

NONCAUSAL = ("softmax", "sum")
"""The rules whose memories may be written as a whole before they are read."""

PLACES = ("encoder", "decoder", "cross")
"""Where there are memories: of the source in the encoder, of the target in the decoder, of the source there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(TrainingSettings):
    """Everything that determines a run but its data, checked when it is made.

    Parameters
    ----------
    rule : str
        Of all memories, by its word: `softmax` or `sum`.
    feature_map : str, optional
        Of all memories but those of softmax: `none`, `elu1`, `dpfp1`, `favor32`, ..; elu1 if not given.
    encoder_rule, decoder_rule, cross_rule : str, optional
        Of those of one place: rule if not given. The decoder's may be any rule: `delta`, `gated_delta`, ..
    encoder_map, decoder_map, cross_map : str, optional
        Likewise: feature_map if not given.
    redraw : bool
        Draw FAVOR+'s features anew in each step.
    encoder_layers, decoder_layers : int
    attention_dropout : float
        Of what memories answer; `dropout` is of embeddings, of what each part adds, and inside the networks.
    label_smoothing : float
        Of the loss that is trained on.
    batch_tokens : int
        Of a part of a batch, with its padding: rows times the tokens of the longest sentence (of each process).
    max_steps : int
    average : int
        The model that is written is the mean of those of the last so many checkpoints.
    d_model, heads, .. :
        As of `fwm_py.experiments.settings.TrainingSettings`.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".
    """

    rule: str = "sum"
    feature_map: str | None = None
    encoder_rule: str | None = None
    encoder_map: str | None = None
    decoder_rule: str | None = None
    decoder_map: str | None = None
    cross_rule: str | None = None
    cross_map: str | None = None
    redraw: bool = False
    encoder_layers: int = 2
    decoder_layers: int = 2
    d_model: int = 64
    heads: int = 4
    d_ff: int = 256
    attention_dropout: float = 0.0
    label_smoothing: float = 0.1
    batch_tokens: int = 640
    max_steps: int = 900
    average: int = 1
    lr: float = 3e-3

    LIMITS: ClassVar[dict[str, tuple[int, int]]] = TrainingSettings.LIMITS | {
        "encoder_layers": (1, 1000),
        "decoder_layers": (1, 1000),
        "batch_tokens": (1, 1 << 30),
        "max_steps": (1, 10**12),
        "average": (1, 1000),
    }
    NUMBERS: ClassVar[dict[str, int | None]] = TrainingSettings.NUMBERS | {"attention_dropout": 1, "label_smoothing": 1}
    FLAGS: ClassVar[tuple[str, ...]] = (*TrainingSettings.FLAGS, "redraw")

    def __post_init__(self) -> None:
        super().__post_init__()
        memories = [self.memory(place) for place in PLACES]
        if self.redraw and not any("redraw" in options for options in memories):
            raise ValueError(f"redraw: got True with the map {self.words('encoder')[1]}, expected favorN")
        mapped = [place for place in PLACES if self.words(place)[0] != "softmax"]
        for name, given, taken in (
            ("rule", self.rule != Settings.rule, [place for place in PLACES if getattr(self, f"{place}_rule") is None]),
            ("feature_map", self.feature_map is not None, [p for p in mapped if getattr(self, f"{p}_map") is None]),
        ):
            if given and not taken:
                raise ValueError(f"{name}: got {shown(getattr(self, name))}, expected none, as no memory takes it")

    def checks(self) -> list[tuple[str, bool, str]]:
        checkpoints = -(-self.max_steps // self.checkpoint_every)
        return [
            *super().checks(),
            ("average", self.average <= checkpoints, f"at most {checkpoints}, the checkpoints of the run"),
        ]

    def steps(self, processes: int = 1) -> int:
        return self.max_steps

    def words(self, place: str) -> tuple[str, str]:
        """The rule and the map of a place's memories."""
        own_rule, own_map = getattr(self, f"{place}_rule"), getattr(self, f"{place}_map")
        rule = self.rule if own_rule is None else own_rule
        usual = "elu1" if self.feature_map is None else self.feature_map
        return rule, own_map if own_map is not None else "none" if rule == "softmax" else usual

    def memory(self, place: str) -> dict[str, Any]:
        """The options of a place's `fwm_py.torch.nn.FastWeightAttention`."""
        rule, feature_map = self.words(place)
        own = {"rule": f"{place}_rule", "feature_map": f"{place}_map"}
        own = {name: of_place for name, of_place in own.items() if getattr(self, of_place) is not None}
        redraw = self.redraw and isinstance(feature_map, str) and feature_map.startswith("favor")
        try:
            options = memory_options(rule, feature_map, False, redraw)
        except (TypeError, ValueError) as error:
            name, message = str(error).split(": ", 1)
            raise type(error)(f"{own.get(name, name)}: {message}") from None
        if place != "decoder" and rule not in NONCAUSAL:
            raise ValueError(
                f"{own.get('rule', 'rule')}: got {rule}, expected {' or '.join(NONCAUSAL)} in the {place} attention"
            )
        options.pop("normalize", None)  # sums with a positive map divide by the sum of weights, as the layer does
        return options | {"causal": place == "decoder", "dropout": self.attention_dropout}


PRESETS: dict[str, dict[str, Any]] = {
    "test": {},
    "study": {
        "d_model": 128,
        "d_ff": 512,
        "batch_tokens": 1500,
        "max_steps": 4400,
        "evaluate_every": 550,
        "checkpoint_every": 550,
    },
    "paper-big": {
        "encoder_layers": 6,
        "decoder_layers": 6,
        "d_model": 1024,
        "heads": 16,
        "d_ff": 4096,
        "dropout": 0.3,
        "batch_tokens": 3584,
        "accumulate": 16,
        "lr": 7e-4,
        "schedule": "inverse_sqrt",
        "warmup_steps": 4000,
        "clip": 0.0,
        "max_steps": 45_000,
        "average": 10,
        "evaluate_every": 1500,
        "checkpoint_every": 1500,
    },
}
"""Settings by name: of a minute on short sentences, of the committed study, and a big Transformer as for WMT14 (Ott et
al. 2018, Scaling Neural Machine Translation), whose recipe the paper took."""
