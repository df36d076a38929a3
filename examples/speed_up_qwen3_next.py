"""A Qwen3-Next of transformers on the CPU, as it comes and with the kernels of fwm_py: one line more.

    pip install 'fwm_py[transformers]' && python examples/speed_up_qwen3_next.py

The model here is small and random, so that nothing has to be downloaded; with yours it is the same line.
"""

import time

import torch
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

import fwm_py.transformers

torch.manual_seed(0)
config = Qwen3NextConfig(
    vocab_size=4096,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=64,
    linear_num_key_heads=4,
    linear_num_value_heads=8,
    linear_key_head_dim=64,
    linear_value_head_dim=64,
    intermediate_size=512,
    mlp_only_layers=[0, 1, 2, 3],
)
model = Qwen3NextForCausalLM(config)
ids = torch.randint(4096, (2, 512))


def training_step():
    model.zero_grad()
    start = time.perf_counter()
    loss = model(ids, labels=ids).loss
    loss.backward()
    return loss.item(), time.perf_counter() - start


training_step()
loss, seconds = training_step()
print(f"as it comes:  loss {loss:.6f}, a training step {seconds:.3f} s")

fwm_py.transformers.enable()

training_step()
loss, seconds = training_step()
print(f"with fwm_py:  loss {loss:.6f}, a training step {seconds:.3f} s")
