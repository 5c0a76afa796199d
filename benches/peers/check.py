"""Holds what torch-flex computes against full attention with the mask written out, a line a shape.

python benches/peers/check.py; exit status 1 where one differs.
"""

import itertools
import sys

import torch

import peer


def sees(shape):
    """Who sees whom, an element a pair."""
    w, back, ahead = shape["window_size"], shape["look_backward"], shape["look_forward"]
    t, u = torch.arange(shape["n"])[:, None], torch.arange(shape["n"])[None, :]
    seen = (t // w - u // w <= back) & (u // w - t // w <= ahead)
    if shape["causal"]:
        seen = seen & (u <= t)
    if shape["exact"]:
        seen = seen & (t - u <= back * w) & (u - t <= ahead * w)
    return seen


def main():
    bad = 0
    for w, causal, exact in itertools.product([64, 128, 192, 512], [True, False], [False, True]):
        shape = {
            "batch": 1, "heads": 2, "n": 1536, "head_dim": 32, "window_size": w, "causal": causal, "exact": exact,
            "look_backward": 1, "look_forward": 0 if causal else 1, "rotary": False, "mask": False, "bias": False,
            "dtype": "f32", "pass": "forward"}
        partial, full = (sum(map(len, lists)) for lists in peer.blocks(shape))
        call, (q, k, v) = peer.flex(shape, torch)
        with torch.inference_mode():
            expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=sees(shape))
            error = (call() - expected).abs().max().item()
        bad += not error < 1e-5
        print(f"window {w} causal {causal} exact {exact}: {partial} partial blocks, {full} whole; error {error:.1e}",
              flush=True)
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
