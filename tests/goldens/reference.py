"""One call of the PyTorch module, in float64."""

import importlib.metadata
import json

import torch
from local_attention import LocalAttention

PACKAGE = importlib.metadata.version("local-attention")
if PACKAGE != "1.11.2":
    raise SystemExit(f"local-attention is {PACKAGE}: requirements.txt pins 1.11.2")
VERSIONS = f"local-attention {PACKAGE} torch {torch.__version__}"


def stepwise_frequencies(dim):
    """inv_freq rounded to f32 after each step, the power taken in f64.

    The module's own buffer differs in about 1 of 70 entries, by up to 2 units in the last place,
    because PyTorch's vectorised f32 pow is not correctly rounded.
    """
    exponent = torch.arange(0, dim, 2).float() / dim
    return 1.0 / (10000.0 ** exponent.double()).float()


def call(config, forward, tensors, dtype=torch.float64, exact_frequencies=False):
    """out, and with dout the gradients, of one call; all in `dtype`."""
    module = LocalAttention(**config)
    module.eval()
    if exact_frequencies and module.rel_pos is not None:
        module.rel_pos.inv_freq.copy_(stepwise_frequencies(len(module.rel_pos.inv_freq) * 2))
    module = module.to(dtype)
    inputs = {name: tensors[name].detach().to(dtype).requires_grad_("dout" in tensors)
              for name in ("q", "k", "v", "attn_bias") if name in tensors}
    arguments = dict(inputs)
    if "mask" in tensors:
        arguments["mask"] = tensors["mask"].bool()
    out = module(**arguments, **forward)
    result = {"out": out.detach()}
    if "dout" in tensors:
        out.backward(tensors["dout"].to(dtype))
        for name, tensor in inputs.items():
            # An input that no output depends on has no gradient.
            gradient = tensor.grad if tensor.grad is not None else torch.zeros_like(tensor)
            result["d" + name] = gradient
    return result


def metadata(name, note, config, forward, tensors, result, seed):
    """What a case file says of itself."""
    single = call(config, forward, {k: v.float() if v.is_floating_point() else v
                                    for k, v in tensors.items()}, torch.float32)
    error = (single["out"].double() - result["out"]).abs()
    return {
        "name": name,
        "note": note,
        "config": json.dumps(config),
        "forward": json.dumps(forward),
        "seed": str(seed),
        "grad": str(int("dout" in tensors)),
        "reference": VERSIONS,
        "out_absmax": repr(result["out"].abs().max().item() if result["out"].numel() else 0.0),
        "f32_max_abs_err": repr(error.max().item() if error.numel() else 0.0),
    }
