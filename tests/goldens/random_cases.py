"""Random configurations of the module that it accepts and computes something finite from."""

import random

import torch


def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


def random_case(seed):
    """(config, forward, tensors), tensors in f64."""
    r = random.Random(seed)
    g = torch.Generator().manual_seed(seed)

    def chance(p):
        return r.random() < p

    def noise(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    window = r.choice([1, 2, 3, 4, 5, 7, 8, 12, 16, 17, 24, 33])
    causal = chance(0.5)
    config = {"window_size": window, "causal": causal, "look_backward": r.choice([0, 1, 1, 2, 3]),
              "shared_qk": chance(0.3), "autopad": chance(0.5), "exact_windowsize": chance(0.5),
              "scale": r.choice([None, None, 0.25, 1.0, 0, -0.5])}
    if not causal:
        config["look_forward"] = r.choice([None, 0, 1, 2, 3])
    rotary = chance(0.6)
    d = 2 * r.choice([1, 2, 3, 4, 8, 16, 24, 32]) if rotary else r.choice([1, 2, 3, 5, 8, 16, 33])
    if rotary:
        config |= {"dim": 999, "rel_pos_emb_config": [d, 2]} if chance(0.1) else {"dim": d}
    elif chance(0.3):
        config |= {"dim": d, "use_rotary_pos_emb": False}
    if chance(0.5):
        config["use_xpos"] = True
        if window == 1 or chance(0.6):
            config["xpos_scale_base"] = r.choice([window, 2 * window, 32, 512, -64, window + 0.5])
    windows = r.randint(1, 6)
    n = windows * window
    if config["autopad"]:
        n -= r.randrange(window)
    padded = windows * window
    keys = padded - r.randrange(window) if config["autopad"] and chance(0.4) else n
    forward = {"window_size": None}
    effective = window
    if config.get("use_xpos") and chance(0.5):
        effective = r.choice(divisors(padded))
        forward["window_size"] = effective
    leading = r.choice([(), (1,), (2,), (2, 3), (1, 2, 2), (0,)])
    batch = 1
    for size in leading:
        batch *= size
    shared = (1,) * len(leading) if batch != 1 and chance(0.3) else leading
    dv = r.choice([d, d, d, 1, 3, 8])
    tensors = {"q": noise(*leading, n, d), "k": noise(*shared, keys, d), "v": noise(*shared, keys, dv)}
    if chance(0.5) and batch:
        lengths = [l for l in range(1, padded + 1) if -(-l // effective) * effective == padded]
        length = r.choice([n, padded, r.choice(lengths)]) if config["autopad"] else padded
        if length in lengths:
            kept = r.choice([0.0, 0.3, 0.8, 1.0])
            mask = torch.rand(r.choice(divisors(batch)), length, generator=g) < kept
            tensors["mask"] = mask.to(torch.uint8)
    if chance(0.4) and batch:
        ahead = config.get("look_forward")
        ahead = (0 if causal else 1) if ahead is None else ahead
        slots = (config["look_backward"] + 1 + ahead) * effective
        bias = noise(r.choice(divisors(batch)), r.choice([1, effective]), r.choice([1, slots]))
        if chance(0.2):
            # Not all slots: the reference gives NaN where nothing is left. No -1e35, which this
            # crate reads as minus infinity on purpose.
            bias[..., torch.rand(bias.shape[-1], generator=g) < 0.3] = -float("inf")
            bias[..., -1] = 0.0
        tensors["attn_bias"] = bias
    return config, forward, tensors
