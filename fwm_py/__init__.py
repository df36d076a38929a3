"""Fast weight memories: the associative-retrieval experiments of linear transformers, on a C core."""

from fwm_py import feature_maps, logs, random, readouts, retrieval
from fwm_py._core import build_info, get_num_threads, set_num_threads

__version__ = "0.1.0"

__all__ = [
    "build_info", "feature_maps", "get_num_threads", "logs", "random", "readouts", "retrieval", "set_num_threads",
]
