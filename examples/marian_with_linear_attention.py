"""A Marian of transformers with linear attention in its encoder, its decoder and between them: a call and a word more.

    pip install 'fwm_py[transformers]' && python examples/marian_with_linear_attention.py [--attention sdpa]

It learns to write words of random letters backwards, and then does so with words that are drawn anew, by beam
search. The model is small and random, so that nothing has to be downloaded; it takes a core less than a minute.
"""

import argparse

import torch
from transformers import MarianConfig, MarianMTModel

import fwm_py.transformers

PAD, END, FIRST = 0, 1, 2  # letters are FIRST + 0 .. FIRST + 25
LONGEST = 6


def pairs(n):
    """n words of 2 to LONGEST letters, and the same backwards: ids (n, LONGEST + 1), each with END, then PAD."""
    letters = torch.randint(FIRST, FIRST + 26, (n, LONGEST))
    lengths = torch.randint(2, LONGEST + 1, (n, 1))
    place = torch.arange(LONGEST + 1)
    backwards = letters.gather(1, (lengths - 1 - place[:-1]).clamp(min=0))
    words = (torch.nn.functional.pad(x, (0, 1)) for x in (letters, backwards))
    return [x.masked_fill(place >= lengths, PAD).masked_fill(place == lengths, END) for x in words]


def spelled(ids):
    return "".join(chr(ord("a") + i - FIRST) for i in ids.tolist() if i >= FIRST)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--attention", default="fwm_dpfp1")
    parser.add_argument("--steps", type=int, default=500)
    args = parser.parse_args()
    torch.manual_seed(0)
    fwm_py.transformers.register_attention()
    config = MarianConfig(
        vocab_size=FIRST + 26,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        max_position_embeddings=32,
        dropout=0.0,
        init_std=0.1,
        scale_embedding=True,
        pad_token_id=PAD,
        eos_token_id=END,
        forced_eos_token_id=END,
        decoder_start_token_id=PAD,
    )
    model = MarianMTModel._from_config(config, attn_implementation=args.attention)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, args.steps)
    for step in range(1, args.steps + 1):
        words, backwards = pairs(64)
        loss = model(words, attention_mask=words != PAD, labels=backwards.masked_fill(backwards == PAD, -100)).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % max(args.steps // 10, 1) == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    words, backwards = pairs(200)
    written = model.eval().generate(words, attention_mask=words != PAD, num_beams=4, max_new_tokens=LONGEST + 1)
    right = [spelled(a) == spelled(b) for a, b in zip(written, backwards)]
    for word, answer in list(zip(words, written))[:3]:
        print(f"{spelled(word)} -> {spelled(answer)}")
    print(f"accuracy {sum(right) / len(right):.3f} of 200 words")


if __name__ == "__main__":
    main()
