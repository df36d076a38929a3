"""Multi-query associative recall on the layer of this package: how many of new questions a memory answers.

A sequence begins with pairs of a key and its value, and then the keys again: the model must say their values there
(MQAR, Arora et al. 2023, arXiv 2312.04927; docs/recall.md). Training needs PyTorch: pip install 'fwm_py[torch]'.

>>> from fwm_py.experiments.recall import Settings, measure
>>> row = measure(Settings(rule="delta", num_kv_pairs=4, seq_len=16, vocab_size=64, max_steps=400))
>>> row.accuracy > 0.9
True
"""

from typing import TYPE_CHECKING

from fwm_py.experiments.lazy import lazily
from fwm_py.experiments.recall.grid import at_best_rates, best_rates, grid, study
from fwm_py.experiments.recall.rows import Row
from fwm_py.experiments.recall.settings import Settings
from fwm_py.experiments.recall.task import Questions, Task

if TYPE_CHECKING:
    from fwm_py.experiments.recall.model import Model
    from fwm_py.experiments.recall.train import measure

__all__ = ["Model", "Questions", "Row", "Settings", "Task", "at_best_rates", "best_rates", "grid", "measure", "study"]

__getattr__ = lazily(__name__, {"Model": "model", "measure": "train"}, "torch")
