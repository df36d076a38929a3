"""The types of the rules' arguments and results."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Real: TypeAlias = npt.NDArray[np.floating[Any]]
Out: TypeAlias = Real | tuple[Real, Real]
Norm: TypeAlias = Literal["l2", "sum"]
Method: TypeAlias = Literal["chunked", "recurrent"]

# The state of a rule that normalizes: S, or with normalize (S, z).
SumStateLike: TypeAlias = npt.ArrayLike | tuple[npt.ArrayLike, npt.ArrayLike]
SumState: TypeAlias = Real | tuple[Real, Real]
SumOut: TypeAlias = Real | tuple[Real, SumState]

# (o, final_state), and the states where return_states_every asks for them.
Results: TypeAlias = tuple[Any, ...]
