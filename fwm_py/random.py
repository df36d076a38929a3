"""Random generators whose streams never change.

`MT19937` gives the draws of torch's CPU generator (the initial parameters) and of NumPy's legacy `RandomState` (the
data). `Philox` gives the normal blocks that torch draws on CUDA, from which the published FAVOR+ features were made.
Both are extension types; give either one to `fwm_py.feature_maps.draw_omega`.
"""

from fwm_py._core import MT19937, Philox

__all__ = ["MT19937", "Philox"]
