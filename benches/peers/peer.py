"""Serves one peer to `local-attention bench --peer`: a JSON object a line in, one out.

First it says {"torch": version}. {"prepare": shape, "hidden": [which, of how many]} -> {"rotary": whether this peer rotates};
{"run": 1} -> {"seconds": .., "peak_rss_bytes": ..}. {"error": why} for whatever cannot be run.
"""

import gc
import json
import sys
import time


# What libraries print is no answer.
ANSWERS, sys.stdout = sys.stdout, sys.stderr


def answer(value):
    print(json.dumps(value), file=ANSWERS, flush=True)


def reference(shape, torch):
    """The module itself."""
    from local_attention import LocalAttention
    module = LocalAttention(
        window_size=shape["window_size"], causal=shape["causal"], look_backward=shape["look_backward"],
        look_forward=shape["look_forward"], exact_windowsize=shape["exact"],
        dim=shape["head_dim"] if shape["rotary"] else None).eval()
    q, k, v = tensors(shape, torch)
    extra = {}
    if shape["mask"]:
        which, period = shape["hidden"]
        extra["mask"] = torch.arange(shape["n"]).remainder(period).ne(which).expand(shape["batch"], -1)
    if shape["bias"]:
        slots = (shape["look_backward"] + 1 + shape["look_forward"]) * shape["window_size"]
        bias = torch.randn(shape["heads"], shape["window_size"], slots, dtype=q.dtype)
        extra["attn_bias"] = bias.requires_grad_(shape["pass"] != "forward")
    leaves = [q, k, v] + [extra[name] for name in extra if name == "attn_bias"]
    return lambda: module(q, k, v, **extra), leaves


def flex(shape, torch):
    """flex_attention with the same mask. It has no rotary: less work than ours."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention
    # Each shape compiles anew, as if it were the first: neither for lengths in general, nor, after too
    # many of them, not at all.
    torch._dynamo.reset()
    w, back, ahead = shape["window_size"], shape["look_backward"], shape["look_forward"]

    def sees(b, h, t, u):
        distance = t // w - u // w
        seen = (distance <= back) & (distance >= -ahead)
        if shape["causal"]:
            seen = seen & (u <= t)
        if shape["exact"]:
            seen = seen & (t - u <= back * w) & (u - t <= ahead * w)
        return seen

    without("torch-flex", shape, "bias", "mask")
    q, k, v = tensors(shape, torch)
    if shape["n"] % BLOCK:
        raise ValueError(f"n must be a multiple of {BLOCK}")
    partial, full = blocks(shape)
    # As wide as the keys: the compiled kernel takes their number from it.
    width = shape["n"] // BLOCK

    def tensor(lists):
        counts = torch.tensor([len(x) for x in lists], dtype=torch.int32)
        indices = torch.tensor([x + [0] * (width - len(x)) for x in lists], dtype=torch.int32)
        return counts[None, None], indices[None, None]

    mask = BlockMask.from_kv_blocks(
        *tensor(partial), *tensor(full), BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(shape["n"], shape["n"]))
    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: compiled(q, k, v, block_mask=mask), [q, k, v]


BLOCK = 128


def blocks(shape):
    """For each block of queries the blocks of keys that it sees in part, where the mask is evaluated,
    and those that it sees whole. From indices: create_block_mask would hold n * n booleans."""
    w, back, ahead, n = shape["window_size"], shape["look_backward"], shape["look_forward"], shape["n"]
    partial, full = [], []
    for first in range(0, n, BLOCK):
        last = first + BLOCK - 1
        low = max(0, (first // w - back) * w)
        high = min(n, (last // w + ahead + 1) * w)
        if shape["causal"]:
            high = min(high, last + 1)
        if shape["exact"]:
            low = max(low, first - back * w)
            high = min(high, last + ahead * w + 1)

        def whole(block):
            left, right = block * BLOCK, block * BLOCK + BLOCK - 1
            return (last // w - left // w <= back and right // w - first // w <= ahead
                    and (not shape["causal"] or right <= first)
                    and (not shape["exact"] or (last - left <= back * w and right - first <= ahead * w)))

        seen = range(low // BLOCK, -(-high // BLOCK))
        partial.append([x for x in seen if not whole(x)])
        full.append([x for x in seen if whole(x)])
    return partial, full


def sdpa(shape, torch):
    """Full attention over all keys."""
    if shape["n"] > 16384:
        raise ValueError("full attention is run to n = 16384 only")
    without("torch-sdpa", shape, "bias", "mask", "exact")
    q, k, v = tensors(shape, torch)
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: attend(q, k, v, is_causal=shape["causal"]), [q, k, v]


def without(name, shape, *options):
    """Refuses what a peer would leave out: its row would be of something else."""
    asked = [option for option in options if shape[option]]
    if asked:
        raise ValueError(f"{name} is run without {' and '.join(asked)}")


def tensors(shape, torch):
    dtype = {"f32": torch.float32, "f16": torch.float16}[shape["dtype"]]
    dims = (shape["batch"], shape["heads"], shape["n"], shape["head_dim"])
    trains = shape["pass"] != "forward"
    return [torch.rand(dims).mul(2).sub(1).to(dtype).requires_grad_(trains) for _ in range(3)]


def timed(shape, torch, call, inputs, dout):
    """One run of the pass that is measured: its seconds."""
    if shape["pass"] == "forward":
        with torch.inference_mode():
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
    start = time.perf_counter()
    out = call()
    if shape["pass"] == "backward":
        start = time.perf_counter()
    # Every gradient, none added to those of the run before.
    torch.autograd.grad(out, inputs, dout)
    return time.perf_counter() - start


def reset_peak():
    """Starts a new peak of resident memory; where the system does not allow it, peaks only grow."""
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")
    except OSError:
        pass


def peak_rss_bytes():
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        try:
            import resource
        except ImportError:  # Windows.
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def said(error):
    """The first line of it that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def main():
    name, threads = sys.argv[1], int(sys.argv[2])
    try:
        import torch
        if name == "torch-reference":
            import local_attention  # noqa: F401
    except ModuleNotFoundError as e:
        how = "pip install -r benches/peers/requirements.txt, or --python PATH"
        answer({"error": f"{e.name or e} is not installed for {sys.executable} ({how})"})
        return
    except Exception as e:  # A library that it needs, or a version that does not fit.
        answer({"error": said(e)})
        return
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    make = {"torch-reference": reference, "torch-flex": flex, "torch-sdpa": sdpa}[name]
    answer({"torch": torch.__version__})
    call = inputs = dout = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "prepare" in request:
                shape = request["prepare"] | {"hidden": request["hidden"]}
                # The tensors of the shape before go first.
                call = inputs = dout = None
                reset_peak()
                call, inputs = make(shape, torch)
                dout = torch.ones_like(inputs[0])
                timed(shape, torch, call, inputs, dout)
                timed(shape, torch, call, inputs, dout)
                answer({"rotary": shape["rotary"] and name == "torch-reference"})
            else:
                # As with ours: the first run of a turn is not timed.
                timed(shape, torch, call, inputs, dout)
                seconds = timed(shape, torch, call, inputs, dout)
                answer({"seconds": seconds, "peak_rss_bytes": peak_rss_bytes()})
        except Exception as e:  # Whatever a shape provokes is told, not hidden.
            answer({"error": said(e)})


if __name__ == "__main__":
    main()
