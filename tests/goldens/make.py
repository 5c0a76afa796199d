"""Makes the golden data again, from the Python package.

python make.py attention [--to DIR]    attention/ again, from the inputs its files hold
python make.py extra [--to DIR]        extra/, from seeds
python make.py random DIR N [--seed S] N random cases in F64, for `local-attention check`
"""

import argparse
import json
import pathlib

import torch
from safetensors import safe_open
from safetensors.torch import save_file

import reference
from random_cases import random_case

HERE = pathlib.Path(__file__).parent


def remake(to):
    """Recomputes every file of attention/ and says how far the result is from what it holds."""
    worst = 0.0
    files = sorted((HERE / "attention").glob("*.safetensors"))
    for path in files:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            stored = {name: file.get_tensor(name) for name in file.keys()}
        inputs = {name: stored[name] for name in ("q", "k", "v", "mask", "attn_bias", "dout")
                  if name in stored}
        result = reference.call(json.loads(metadata["config"]), json.loads(metadata["forward"]), inputs)
        for name, tensor in result.items():
            scale = max(1.0, stored[name].abs().max().item())
            # Stored as f32: half a unit in the last place of the largest number.
            difference = (tensor - stored[name].double()).abs().max().item() / scale
            worst = max(worst, difference)
            assert difference < 2.0**-24, (path.name, name, difference)
        save_file({**inputs, **{n: t.float().contiguous() for n, t in result.items()}},
                  to / path.name, metadata | {"reference": reference.VERSIONS})
    print(f"{len(files)} files, largest difference to the stored ones {worst:.1e} (stored as f32)")


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float()


def qkv(seed, leading, n, d, kn=None, dv=None):
    kn, dv = kn or n, dv or d
    return {"q": noise(seed, *leading, n, d), "k": noise(seed + 1, *leading, kn, d),
            "v": noise(seed + 2, *leading, kn, dv), "dout": noise(seed + 3, *leading, n, dv)}


def extra_cases():
    """(name, note, config, forward, tensors): what the other cases lack."""
    inf = float("inf")

    def mask(rows):
        return torch.tensor(rows, dtype=torch.uint8)

    base = {"window_size": 4, "dim": 8}
    yield ("fewer_keys_causal", "7 keys for 8 queries: each padded on its own",
           base | {"causal": True, "autopad": True}, {}, qkv(100, (2, 2), 8, 8, kn=7))
    yield ("fewer_keys_noncausal", "5 keys for 8 queries: the zeros are attended",
           base | {"autopad": True}, {}, qkv(110, (2,), 8, 8, kn=5))
    yield ("fewer_keys_exact_shared_qk", "queries past the last key have a zero key of their own",
           base | {"autopad": True, "shared_qk": True, "exact_windowsize": True}, {}, qkv(120, (2,), 8, 8, kn=5))
    yield ("fewer_keys_lb0_bias", "zero keys take a bias each",
           {"window_size": 5, "autopad": True, "look_backward": 0, "look_forward": 0}, {},
           qkv(130, (3,), 9, 6, kn=7) | {"attn_bias": noise(134, 3, 5, 5)})
    yield ("more_keys_than_queries", "8 keys for 6 queries",
           base | {"autopad": True}, {}, qkv(140, (2,), 6, 8, kn=8))
    yield ("mask_padded_length", "a mask as long as the padded sequence, true on a zero of autopad",
           base | {"autopad": True}, {},
           qkv(150, (2, 2), 10, 8) | {"mask": mask([[1] * 11 + [0], [0] + [1] * 11])})
    yield ("mask_shorter_than_keys", "a mask that ends before the keys: the rest is hidden",
           base | {"autopad": True}, {}, qkv(160, (2,), 12, 8) | {"mask": mask([[1] * 9])})
    yield ("mask_row_per_head", "a mask row for every packed row",
           {"window_size": 4, "causal": True}, {},
           qkv(170, (2, 2), 8, 8) | {"mask": mask([[1, 1, 0, 1, 1, 0, 1, 1], [1] * 8,
                                                   [1, 0] * 4, [1, 1, 1, 0, 0, 0, 0, 1]])})
    some = noise(184, 1, 4, 8)
    some[0, :, 1::3] = -1e35
    yield ("bias_minus_1e35", "a bias of -1e35 on some slots: weight 0",
           {"window_size": 4, "causal": True, "look_backward": 1}, {},
           qkv(180, (2,), 12, 8) | {"attn_bias": keep_own_slot(some, 4)})
    some = noise(194, 2, 4, 12)
    some[:, :, ::2] = -inf
    yield ("bias_minus_inf", "a bias of -inf on some slots: weight 0",
           base, {}, qkv(190, (2, 2), 12, 8) | {"attn_bias": keep_own_slot(some, 4)})
    yield ("degenerate_mask_all", "a row of the batch is masked whole: uniform over all slots",
           base, {}, qkv(200, (2, 2), 12, 8) | {"mask": mask([[0] * 12, [1] * 12])})
    yield ("degenerate_mask_causal_start", "the first queries see masked keys alone",
           base | {"causal": True}, {}, qkv(210, (2,), 12, 8) | {"mask": mask([[0] * 5 + [1] * 7])})
    yield ("degenerate_mask_autopad", "masked whole, with zeros of autopad and slots outside",
           {"window_size": 5, "autopad": True, "exact_windowsize": True, "dim": 8}, {},
           qkv(220, (2,), 7, 8) | {"mask": mask([[0] * 7, [1] * 7])})
    yield ("degenerate_mask_shared_qk", "a masked query does not see itself either",
           base | {"shared_qk": True, "causal": True}, {},
           qkv(230, (2,), 8, 8) | {"mask": mask([[0, 0, 1, 1, 0, 1, 1, 1]])})
    yield ("degenerate_bias_causal", "-inf on all that is seen: the weight goes to hidden slots",
           {"window_size": 4, "causal": True, "look_backward": 1}, {},
           qkv(240, (1,), 8, 8) | {"attn_bias": rows_of_minus_infinity(244, 4, 8, [0, 2])})
    yield ("degenerate_bias_mask", "-inf where the mask lets through",
           {"window_size": 4}, {},
           qkv(250, (2,), 8, 8) | {"attn_bias": rows_of_minus_infinity(254, 4, 12, [1]),
                                   "mask": mask([[1, 1, 0, 1, 1, 1, 1, 0]])})
    yield ("degenerate_value_dim", "a value size of its own, in rows that see nothing",
           {"window_size": 3, "causal": True}, {},
           qkv(260, (2,), 6, 4, dv=7) | {"mask": mask([[0, 1, 1, 0, 0, 0]])})
    yield ("head_dim_1", "one feature", {"window_size": 4}, {}, qkv(270, (2,), 8, 1))
    yield ("negative_xpos_base", "xpos that grows with the distance",
           base | {"use_xpos": True, "xpos_scale_base": -16}, {}, qkv(280, (2,), 12, 8))
    yield ("fractional_xpos_base", "a base that is no integer",
           base | {"use_xpos": True, "xpos_scale_base": 2.5}, {}, qkv(290, (2,), 12, 8))
    yield ("scale_zero", "a scale of 0 is honoured", base | {"scale": 0, "causal": True}, {}, qkv(300, (2,), 8, 8))


def keep_own_slot(bias, window):
    """A finite bias for every query's own position, so that no row sees nothing."""
    slots = bias.shape[-1]
    own = window if slots >= 2 * window else 0
    for i in range(window):
        bias[:, i, own + i] = 0.25
    return bias


def rows_of_minus_infinity(seed, window, slots, rows):
    bias = noise(seed, 1, window, slots)
    bias[:, rows] = -float("inf")
    return bias


def save(path, name, note, config, forward, tensors, seed):
    result = reference.call(config, forward, tensors)
    assert all(t.isfinite().all() for t in result.values()), (name, "the reference gives NaN")
    metadata = reference.metadata(name, note, config, forward, tensors, result, seed)
    save_file({n: t.contiguous() for n, t in tensors.items()}
              | {n: t.float().contiguous() for n, t in result.items()}, path, metadata)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("attention", "extra"):
        commands.add_parser(name).add_argument("--to", type=pathlib.Path, default=HERE / name)
    random = commands.add_parser("random")
    random.add_argument("to", type=pathlib.Path)
    random.add_argument("count", type=int)
    random.add_argument("--seed", type=int, default=0)
    random.add_argument("--module-frequencies", action="store_true",
                        help="the module's own inv_freq, not the one rounded at each step")
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    if args.command == "attention":
        remake(args.to)
    elif args.command == "extra":
        for name, note, config, forward, tensors in extra_cases():
            save(args.to / f"{name}.safetensors", name, note, config, forward, tensors, 0)
    else:
        for i in range(args.count):
            config, forward, tensors = random_case(args.seed * 1_000_000 + i)
            result = reference.call(config, forward, tensors, exact_frequencies=not args.module_frequencies)
            metadata = {"config": json.dumps(config), "forward": json.dumps(forward)}
            save_file({n: t.contiguous() for n, t in {**tensors, "out": result["out"]}.items()},
                      args.to / f"case_{i:05}.safetensors", metadata)


if __name__ == "__main__":
    main()
