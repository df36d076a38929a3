"""The associative-retrieval experiments: settings, data, model and training of one run.

A run trains one model on sequences of random key-value pairs and measures how well it retrieves the value of a queried
key (Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, Settings 1 and 2). The same settings and seed give the same run
as the program published with the paper. The loop runs in C, without the interpreter's lock.

    >>> from fwm_py.retrieval import Settings, train
    >>> rows = train(Settings(n_keys=20, attn_name="dpfp", attn_arg=1))
    >>> step, loss = rows[0]
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fwm_py import _core
from fwm_py.checks import choice, flag, instance, integer, positive, shown
from fwm_py.files import write_file
from fwm_py.model_files import NOT_A_MODEL, ModelFile, format_model

MAP_ARGUMENTS: dict[str, str] = {row["name"]: row["argument"] for row in _core.MAPS}
"""Name of each feature map and of its argument, `""` for a map without one."""

UPDATE_RULES: tuple[str, ...] = tuple(row["name"] for row in _core.READOUTS if row["uses_map"])
"""Values of `update_rule`."""

ATTN_NAMES: tuple[str, ...] = (*MAP_ARGUMENTS, *(row["name"] for row in _core.READOUTS if not row["uses_map"]))
"""Values of `attn_name`: the maps, and the rules that do without one (softmax)."""

GENERATORS: tuple[str, ...] = ("philox", "mt19937")
"""Values of `favor_generator`."""

LIMITS: dict[str, tuple[int, int]] = {
    "n_keys": (2, 2000),
    "attn_arg": (0, 65536),
    "seed": (0, 2**32 - 1),
    "hidden_size": (1, 1024),
    "batch_size": (1, 4096),
    "max_steps": (0, 10**9),
}
"""The smallest and the largest value of each whole-number setting."""

FILE_VERSION = 1

OnEvaluation = Callable[[int, float], object]
OnProgress = Callable[[int, float], object]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that determines one run, checked when it is made.

    Parameters
    ----------
    n_keys : int
        Number N of different keys, and of different values, 2..2000.
    attn_name : str
        One of `ATTN_NAMES`: a feature map, or `softmax`, a rule of its own.
    attn_arg : int
        Argument of the map (`MAP_ARGUMENTS`), 1..65536. Ignored by maps without one, as in the published program.
    update_rule : str
        One of `UPDATE_RULES`; `ours` is the delta rule. Ignored by softmax.
    replace : bool
        Draw keys and values with replacement, in sequences of 2 N pairs (Setting 2), instead of N (Setting 1).
    seed : int
        Seed of the data, the initial parameters and FAVOR+, 0..2**32 - 1. The published runs have 1.
    hidden_size : int
        Size d of keys and queries before the map, 1..1024.
    batch_size : int, optional
        Sequences a step, 1..4096. None: 128 for `tanh` with `fwm`, else 32.
    lr : float, optional
        Adam's step size, finite and above 0. None: 1e-4 for `tanh` with `fwm`, else 1e-3.
    max_steps : int
        The run ends after this step, if it has not ended before, 0..10**9.
    favor_generator : str
        What draws FAVOR+'s random features: `philox`, the stream of the published (GPU) logs, or `mt19937`, that of
        the published program on a CPU. Ignored by the other maps.

    Raises
    ------
    TypeError, ValueError
        "<name>: got <value>, expected <what is allowed>".
    """

    n_keys: int = 20
    attn_name: str = "softmax"
    attn_arg: int = 0
    update_rule: str = "sum"
    replace: bool = False
    seed: int = 1
    hidden_size: int = 64
    batch_size: int | None = None
    lr: float | None = None
    max_steps: int = 100_000
    favor_generator: str = "philox"

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            name: integer(name, getattr(self, name), *limits)
            for name, limits in LIMITS.items()
            if not (name == "batch_size" and self.batch_size is None)
        }
        if self.lr is not None:
            checked["lr"] = positive("lr", self.lr)
        checked["replace"] = flag("replace", self.replace)
        choice("attn_name", self.attn_name, ATTN_NAMES)
        choice("update_rule", self.update_rule, UPDATE_RULES)
        choice("favor_generator", self.favor_generator, GENERATORS)
        argument = MAP_ARGUMENTS.get(self.attn_name, "")
        if argument and checked["attn_arg"] == 0:
            raise ValueError(
                f"attn_arg: got 0, expected an integer in 1..{LIMITS['attn_arg'][1]} ({argument} of {self.attn_name})"
            )
        for name, value in checked.items():  # whole numbers of NumPy become Python's
            object.__setattr__(self, name, value)

    @property
    def map(self) -> str | None:
        """The feature map, None for softmax."""
        return self.attn_name if self.attn_name in MAP_ARGUMENTS else None

    @property
    def rule(self) -> str:
        """The read-out rule: `update_rule`, or `softmax`."""
        return self.update_rule if self.map else self.attn_name

    @property
    def seq_len(self) -> int:
        """Length L of a training sequence: N, or 2 N with replacement."""
        return 2 * self.n_keys if self.replace else self.n_keys

    @property
    def resolved_batch_size(self) -> int:
        """`batch_size`, or the published default for this map and rule."""
        if self.batch_size is not None:
            return self.batch_size
        return 128 if self._is_original_fwm else 32

    @property
    def resolved_lr(self) -> float:
        """`lr`, or the published default for this map and rule."""
        if self.lr is not None:
            return self.lr
        return 1e-4 if self._is_original_fwm else 1e-3

    @property
    def _is_original_fwm(self) -> bool:
        """The published program trains tanh with fwm more slowly, on larger batches."""
        return (self.map, self.rule) == ("tanh", "fwm")


def step_size(lr: float, dtype: npt.DTypeLike) -> float:
    """Adam's step size, which this precision must hold, and ten times as much: the first step divides it by 1 - 0.9.

    Raises
    ------
    ValueError
        "lr: got <value>, expected <what is allowed>".
    """
    limits = np.finfo(dtype)
    low, high = float(limits.smallest_subnormal), 0.09 * float(limits.max)
    if not low <= lr <= high:
        raise ValueError(f"lr: got {shown(lr)}, expected a number in {low:.2g}..{high:.2g} in {limits.dtype}")
    return lr


class Batch(NamedTuple):
    """Sequences and their queries, int64: keys are 0..N-1, values N..2N-1."""

    keys: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    query: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]


def _parts(batch: Any) -> dict[str, Any]:
    """Keys, values, query and answer."""
    expected = "expected a Batch: keys, values, query and answer"
    if not isinstance(batch, (tuple, list)):
        raise TypeError(f"batch: got {type(batch).__name__}, {expected}")
    if len(batch) != len(Batch._fields):
        raise ValueError(f"batch: got a {type(batch).__name__} of {len(batch)}, {expected}")
    return dict(zip(Batch._fields, batch))


class Stream:
    """The data of a run, from `numpy.random.RandomState(seed)`'s stream.

    Training and evaluation draw from the same stream, as in the published program: what `evaluation` draws, `batch`
    does not draw again. A copy, or what was pickled, goes on from where it was.
    """

    def __init__(self, settings: Settings) -> None:
        instance("settings", settings, Settings)
        self.settings = settings
        self._stream = _core.Stream(
            seed=settings.seed,
            n_keys=settings.n_keys,
            batch_size=settings.resolved_batch_size,
            replace=settings.replace,
        )

    def __copy__(self) -> Stream:
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        return f"<Stream of {self.settings}>"

    def batch(self) -> Batch:
        """The next training batch: keys and values (B, L), query and answer (B,)."""
        return Batch(*self._stream.batch())

    def evaluation(self) -> list[Batch]:
        """The sequences of the next evaluation: 20 of keys and values (N,), query and answer (n,).

        A sequence's queries are its n distinct keys in ascending order, the first 200 of them.
        """
        return [Batch(*sequence) for sequence in self._stream.evaluation()]


class Model:
    """The model of a run: embeddings, the projections to keys and queries, a map and a rule.

    Parameters
    ----------
    settings : Settings
        Sizes, map, rule, and the seed of the initial parameters.
    dtype : dtype
        float32 (as published) or float64. The initial parameters are float32 numbers either way.

    Raises
    ------
    TypeError
        "<name>: got <value>, expected <what is allowed>".
    MemoryError
        If the parameters and the workspace of a step do not fit.

    Notes
    -----
    One thread at a time may use a model; its methods raise RuntimeError while another does. A copy, or what was
    pickled, has Adam's moments and FAVOR+'s generator, and goes on as the model would.
    """

    def __init__(self, settings: Settings, dtype: npt.DTypeLike = np.float32) -> None:
        instance("settings", settings, Settings)
        self.settings = settings
        self.dtype = _precision(dtype)
        self._model = _core.Model(
            n_keys=settings.n_keys,
            hidden_size=settings.hidden_size,
            map=settings.map,
            argument=settings.attn_arg,
            readout=settings.rule,
            replace=settings.replace,
            batch_size=settings.resolved_batch_size,
            seed=settings.seed,
            favor_generator=settings.favor_generator,
            dtype=self.dtype.name,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings, "dtype": self.dtype, "state": self._model.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Model.__init__(self, state["settings"], state["dtype"])
        self._model.set_state(state["state"])

    def __repr__(self) -> str:
        return f"<Model of {self.settings}, {self.dtype}, {self._model.steps} steps made>"

    @property
    def parameters(self) -> dict[str, npt.NDArray[Any]]:
        """Views of the parameters by their published names, such as `W_k.weight` (d, N + E)."""
        return self._model.parameters

    def loss(self, batch: Batch, omega: npt.ArrayLike | None = None) -> float:
        """Mean over the batch of 0.5 |one-hot(answer) - y|^2.

        Parameters
        ----------
        batch : Batch
            keys and values (B, L), query and answer (B,); B at most the model's batch size.
        omega : array (d, m), optional
            FAVOR+'s random features. None draws the next ones of the model's generator. Other maps take none.
        """
        return self._model.loss(**_parts(batch), omega=omega)

    def loss_and_gradients(
        self, batch: Batch, omega: npt.ArrayLike | None = None
    ) -> tuple[float, dict[str, npt.NDArray[Any]]]:
        """The loss, and its gradients by the names of the parameters that are trained; arguments as of `loss`."""
        return self._model.loss_and_gradients(**_parts(batch), omega=omega)

    def step(self, batch: Batch, lr: float | None = None) -> float:
        """Make one step of training on `batch`: the gradients, then Adam. `train` makes many.

        Parameters
        ----------
        batch : Batch
            As of `loss`. FAVOR+ draws the next random features of the model's generator.
        lr : float, optional
            Adam's step size, as of `step_size`. None: that of the settings.

        Returns
        -------
        float
            The loss before the step.
        """
        lr = step_size(self.settings.resolved_lr if lr is None else positive("lr", lr), self.dtype)
        return self._model.step(**_parts(batch), lr=lr)

    def read_out(self, batch: Batch, omega: npt.ArrayLike | None = None) -> npt.NDArray[Any]:
        """What the memory answers to the queries, y (B, N); `batch.answer` is not looked at."""
        parts = _parts(batch)
        del parts["answer"]
        return self._model.read_out(**parts, omega=omega)

    def evaluate(self, stream: Stream) -> float:
        """The evaluation loss on the next evaluation sequences of `stream`, a float32 value."""
        instance("stream", stream, Stream)
        return self._model.evaluate(stream._stream)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write settings and parameters to an .npz file (named exactly `path`), wholly or not at all.

        Adam's moments and the positions of the random streams are not part of it.

        Raises
        ------
        OSError
            If that fails, with the name of the file; a file that was there is as it was.
        """
        header = {"version": FILE_VERSION, "settings": dataclasses.asdict(self.settings)}
        write_file(path, format_model(header, self._model.snapshot()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read a model that `save` wrote.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is no model file, of another version, or its arrays do not fit its settings: "<path>: ..".
        MemoryError
            If a model of its settings does not fit into memory.
        """
        with open(path, "rb") as file:
            data = file.read()
        try:
            return cls._from_file(ModelFile(data))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fsdecode(path)}: {error}") from None

    @classmethod
    def _from_file(cls, file: ModelFile) -> Model:
        header = file.header
        if not isinstance(header, dict) or not {"version", "settings"} <= header.keys():
            raise ValueError(NOT_A_MODEL)
        version = header["version"]
        if type(version) is not int or version != FILE_VERSION:
            raise ValueError(f"got version {shown(version)}, expected {FILE_VERSION}")
        if not isinstance(header["settings"], dict):
            raise ValueError(NOT_A_MODEL)
        settings = Settings(**header["settings"])
        dtype = _dtype_of(file, settings)
        arrays = {name: file.numbers(name) for name in file.members}
        model = cls(settings, dtype)
        for name, parameter in model.parameters.items():
            parameter[...] = arrays[name]
        return model


def _precision(dtype: npt.DTypeLike) -> np.dtype[Any]:
    try:
        precision = np.dtype(dtype)
    except TypeError:
        precision = np.dtype(object)
    if precision not in (np.float32, np.float64):
        raise TypeError(f"dtype: got {shown(dtype)}, expected float32 or float64")
    return precision


def _dtype_of(file: ModelFile, settings: Settings) -> np.dtype[Any]:
    """The arrays' precision: all must be there, have it, and have the shapes of a model of `settings`."""
    shapes = parameter_shapes(settings)
    if file.members.keys() != shapes.keys():
        names = ", ".join(shown(name)[1:-1] for name in file.members)
        raise ValueError(f"got the parameters {names[:400]}, expected {', '.join(shapes)}")
    dtype = file.members["W_k.weight"].dtype
    if dtype not in (np.float32, np.float64):
        raise ValueError(f"W_k.weight: got {dtype}, expected float32 or float64")
    for name, shape in shapes.items():
        got = file.members[name]
        if (got.shape, got.dtype) != (shape, dtype):
            raise ValueError(f"{name}: got {str(got.dtype)[:80]} {shown(got.shape)}, expected {dtype} {shape}")
    return dtype


def parameter_shapes(settings: Settings) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's parameters by their published names: N keys, embeddings of E numbers, d features."""
    N, d = settings.n_keys, settings.hidden_size
    E = int(2 * N * 1.1)
    shapes: dict[str, tuple[int, ...]] = {"embeddingV.weight": (N, N), "embeddingK.weight": (2 * N, E)}
    layers = {"W_k": (d, N + E), "W_v": (d, N + E), "W_q": (d, E)}
    if settings.map is not None:
        layers.update(W_f=(d, N + E), W_b=(1, N + E))
    for name, (rows, columns) in layers.items():
        shapes.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})
    return shapes


def train(
    settings: Settings,
    on_evaluation: OnEvaluation | None = None,
    on_progress: OnProgress | None = None,
    model: Model | None = None,
) -> list[tuple[int, float]]:
    """Train a model to the end of its run.

    Every 100 steps the model is evaluated. The run ends when an evaluation loss is at most 0.001, when the best of
    them was not beaten by eleven in a row (NaN beats nothing), or after `settings.max_steps` steps.

    Parameters
    ----------
    settings : Settings
        The run.
    on_evaluation : callable, optional
        Called with (step, evaluation loss) after each evaluation.
    on_progress : callable, optional
        Called with (step, training loss) about ten times a second. Both may read the model, copy and save it, and the
        run goes on as if they had not; what FAVOR+ draws for them, the run draws again. They may not train it.
    model : Model, optional
        The model to train, in place. None: a new one. The settings it was made with may differ from `settings` in
        `seed`, `lr`, `max_steps` and `favor_generator` only.

    Returns
    -------
    list of (int, float)
        The evaluations: step and loss (a float32 value).

    Raises
    ------
    ValueError
        If `model` does not fit `settings`, or its precision does not hold their `lr`, see `step_size`.
    RuntimeError
        If `model` is in use by another thread, or is being trained.
    KeyboardInterrupt
        Within a second of Ctrl-C. Every evaluation made before has reached `on_evaluation`.
    MemoryError
        If a step does not fit into memory.
    """
    stream = Stream(settings)
    if model is None:
        model = Model(settings)
    instance("model", model, Model)
    for name, function in (("on_evaluation", on_evaluation), ("on_progress", on_progress)):
        if function is not None and not callable(function):
            raise TypeError(f"{name}: got {shown(function)}, expected a function of a step and a loss")
    for name in ("n_keys", "map", "rule", "attn_arg", "replace", "hidden_size", "resolved_batch_size"):
        got, expected = getattr(model.settings, name), getattr(settings, name)
        if got != expected:
            raise ValueError(f"model: got one with {name} {got}, expected {expected}")
    rows: list[tuple[int, float]] = []

    def keep(step: int, loss: float) -> None:
        rows.append((step, loss))
        if on_evaluation is not None:
            on_evaluation(step, loss)

    lr = step_size(settings.resolved_lr, model.dtype)
    model._model.train(
        stream=stream._stream, lr=lr, max_steps=settings.max_steps, on_evaluation=keep, on_progress=on_progress
    )
    return rows
