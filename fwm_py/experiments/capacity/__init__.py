"""What a fast weight memory holds: with p features it keeps p associations, trained or not (docs/capacity.md).

In Setting 1 of the paper the mean loss over all N keys of a sequence is at least (1 - p/N) / 2, by rank, whatever the
map and the rule; training reaches it. A run with N = 2p shows it: N (1 - 2 loss) keys are stored.

>>> from fwm_py.experiments.capacity import grid, measure
>>> for settings in grid(feature_map=["dpfp1"], hidden_size=[8], load=[2], seed=[1]):
...     row = measure(settings)
...     print(row.rule, row.p, row.n_keys, round(row.stored))
sum 16 32 16
delta 16 32 15
"""

from fwm_py.experiments.capacity.grid import grid, study
from fwm_py.experiments.capacity.measure import Row, measure
from fwm_py.experiments.capacity.untrained import Untrained, untrained

__all__ = ["Row", "Untrained", "grid", "measure", "study", "untrained"]
