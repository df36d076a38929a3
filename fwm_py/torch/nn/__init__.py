"""Layers: multi-head attention whose memory is a fast weight matrix, and its parts."""

from fwm_py.torch.nn.decoder import Decoder, DecoderState
from fwm_py.torch.nn.encoder_decoder import EncoderDecoder, EncoderDecoderState
from fwm_py.torch.nn.layer import FastWeightAttention
from fwm_py.torch.nn.parts import RMSNorm, ShortConvolution
from fwm_py.torch.nn.state import AttentionState, KeyCache

__all__ = [
    "AttentionState",
    "Decoder",
    "DecoderState",
    "EncoderDecoder",
    "EncoderDecoderState",
    "FastWeightAttention",
    "KeyCache",
    "RMSNorm",
    "ShortConvolution",
]
