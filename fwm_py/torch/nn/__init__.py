"""Layers: multi-head attention whose memory is a fast weight matrix."""

from fwm_py.torch.nn.layer import FastWeightAttention

__all__ = ["FastWeightAttention"]
