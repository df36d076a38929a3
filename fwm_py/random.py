"""Random generators whose streams never change.

`MT19937` gives the draws of torch's CPU generator (the initial parameters) and of NumPy's legacy `RandomState` (the
data). `Philox` gives the normal blocks that torch draws on CUDA, from which the published FAVOR+ features were made.
Both are extension types; give either one to `fwm_py.feature_maps.draw_omega`.

>>> from fwm_py.random import MT19937, Philox
>>> MT19937(0).permutation(5)  # as numpy.random.RandomState(0)
array([2, 0, 1, 3, 4])
>>> Philox(0).normal(3).shape
(3,)
"""

from fwm_py._core import MT19937, Philox

__all__ = ["MT19937", "Philox"]
