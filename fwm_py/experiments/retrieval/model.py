"""The model of a run, its file, and one step of its training."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fwm_py import _core
from fwm_py.checks import instance, positive, shown
from fwm_py.experiments.files import write_file
from fwm_py.experiments.retrieval.model_files import NOT_A_MODEL, ModelFile, format_model
from fwm_py.experiments.retrieval.settings import Settings, step_size
from fwm_py.experiments.retrieval.stream import Batch, Stream, parts_of

FILE_VERSION = 1


class Recall(NamedTuple):
    """What a memory returns of its keys.

    Attributes
    ----------
    loss : float
        The mean of 0.5 |one-hot(answer) - y|^2 over all queries of all sequences.
    right : float
        The share of queries whose answer has the largest y, alone.
    worst : float
        The largest loss of a query.
    """

    loss: float
    right: float
    worst: float


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
            redraws=settings.redraw == "pass",
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
        return self._model.loss(**parts_of(batch), omega=omega)

    def loss_and_gradients(
        self, batch: Batch, omega: npt.ArrayLike | None = None
    ) -> tuple[float, dict[str, npt.NDArray[Any]]]:
        """The loss, and its gradients by the names of the parameters that are trained; arguments as of `loss`."""
        return self._model.loss_and_gradients(**parts_of(batch), omega=omega)

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
        return self._model.step(**parts_of(batch), lr=lr)

    def read_out(self, batch: Batch, omega: npt.ArrayLike | None = None) -> npt.NDArray[Any]:
        """What the memory answers to the queries, y (B, N); `batch.answer` is not looked at."""
        parts = parts_of(batch)
        del parts["answer"]
        return self._model.read_out(**parts, omega=omega)

    def evaluate(self, stream: Stream) -> float:
        """The published evaluation loss on the next evaluation sequences of `stream`, a float32 value."""
        instance("stream", stream, Stream)
        return self._model.evaluate(stream._stream)

    def recall(self, stream: Stream) -> Recall:
        """What the memory returns of all keys of the next 20 sequences of `stream`, as long as those trained.

        Unlike the published evaluation, every query counts alike, and FAVOR+ has one Omega for all keys and queries of
        a sequence, so that what p features can hold bounds the loss (docs/capacity.md).
        """
        instance("stream", stream, Stream)
        return Recall(*self._model.recall(stream._stream))

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
