"""The associative-retrieval experiments: settings, data, model and training of one run.

A run trains one model on sequences of random key-value pairs and measures how well it retrieves the value of a queried
key (Schlag, Irie, Schmidhuber 2021, arXiv 2102.11174, Settings 1 and 2). The same settings and seed give the same run
as the program published with the paper. The loop runs in C, without the interpreter's lock.

>>> from fwm_py.experiments.retrieval import Settings, train
>>> rows = train(Settings(n_keys=20, attn_name="dpfp", attn_arg=1, max_steps=200))
>>> for step, loss in rows:
...     print(step, round(loss, 4))
100 0.0008
"""

from fwm_py.experiments.retrieval.logs import LogWriter, log_name, read_log
from fwm_py.experiments.retrieval.model import Model, Recall
from fwm_py.experiments.retrieval.paper import COMMANDS, RUNS, Command, published_losses
from fwm_py.experiments.retrieval.settings import Settings
from fwm_py.experiments.retrieval.stream import Batch, Stream
from fwm_py.experiments.retrieval.sweep import Run, reproduce, select
from fwm_py.experiments.retrieval.train import has_ended, train

__all__ = [
    "COMMANDS",
    "RUNS",
    "Batch",
    "Command",
    "LogWriter",
    "Model",
    "Recall",
    "Run",
    "Settings",
    "Stream",
    "has_ended",
    "log_name",
    "published_losses",
    "read_log",
    "reproduce",
    "select",
    "train",
]
