"""Fast weight memories: the associative-retrieval experiments of linear transformers, on a C core."""

__version__ = "0.1.0"

from fwm_py import experiments, feature_maps, logs, random, readouts, retrieval
from fwm_py._core import build_info, get_num_threads, set_num_threads
from fwm_py.sweep import reproduce

__all__ = [
    "build_info", "experiments", "feature_maps", "get_num_threads", "logs", "random", "readouts", "reproduce", "retrieval",
    "set_num_threads",
]
