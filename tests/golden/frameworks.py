"""How frameworks draw: statistics of their own layers, written to `frameworks.json`.

    python tests/golden/frameworks.py

needs `pip install torch keras transformers` (Keras runs on its jax backend), which the
tests do not: they read the file. Every layer is drawn until 40,000 numbers of each
array are there; arrays are named as in Flax. Lingvo and RETURNN do not install beside
these: their rules are checked against their formulas.
"""

import json
import os
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import keras
import numpy as np
import torch
import transformers
from torch import nn

NUMBERS = 40_000


def statistics(arrays):
    """Mean, rms, largest size, and mean size over rms, which tells distributions."""
    x = np.concatenate([np.ravel(a) for a in arrays]).astype(np.float64)
    rms = float(np.sqrt(np.mean(x**2)))
    return {
        "mean": float(x.mean()),
        "rms": rms,
        "largest": float(np.abs(x).max()),
        "shape": float(np.abs(x).mean() / rms) if rms else 0.0,
        "count": x.size,
    }


def collect(make):
    """Statistics of each array that `make()` returns, over as many calls as needed."""
    seen = {}
    while min((sum(a.size for a in v) for v in seen.values()), default=0) < NUMBERS:
        for name, array in make().items():
            seen.setdefault(name, []).append(np.asarray(array))
    return {name: statistics(arrays) for name, arrays in seen.items()}


def torch_arrays(make, **names):
    """The arrays of a fresh module, under other names."""

    def once():
        own = {n: p.detach().numpy() for n, p in make().named_parameters()}
        return {name: own[of] for name, of in names.items()}

    return once


weights = {"kernel": "weight", "bias": "bias"}
cell = {"input": "weight_ih_l0", "recurrent": "weight_hh_l0", "bias": "bias_hh_l0"}
TORCH = {
    "dense": torch_arrays(lambda: nn.Linear(64, 256), **weights),
    "conv": torch_arrays(lambda: nn.Conv2d(8, 32, 3), **weights),
    "conv_grouped": torch_arrays(lambda: nn.Conv2d(8, 32, 3, groups=2), **weights),
    "conv_transpose": torch_arrays(
        lambda: nn.ConvTranspose2d(8, 32, 4, stride=2), **weights
    ),
    "embed": torch_arrays(lambda: nn.Embedding(100, 64), embedding="weight"),
    "norm": torch_arrays(lambda: nn.LayerNorm(64), scale="weight", bias="bias"),
    "lstm": torch_arrays(lambda: nn.LSTM(48, 32), **cell),
    "gru": torch_arrays(lambda: nn.GRU(48, 32), **cell),
}


def keras_arrays(make, shape, *names):
    def once():
        layer = make()
        layer.build(shape)
        return dict(zip(names, map(np.asarray, layer.weights), strict=False))

    return once


layers = keras.layers
KERAS = {
    "dense": keras_arrays(lambda: layers.Dense(256), (1, 64), "kernel", "bias"),
    "conv": keras_arrays(lambda: layers.Conv2D(32, 3), (1, 9, 9, 8), "kernel", "bias"),
    "conv_grouped": keras_arrays(
        lambda: layers.Conv2D(32, 3, groups=2), (1, 9, 9, 8), "kernel", "bias"
    ),
    "conv_transpose": keras_arrays(
        lambda: layers.Conv2DTranspose(32, 4, strides=2), (1, 9, 9, 8), "kernel", "bias"
    ),
    "embed": keras_arrays(lambda: layers.Embedding(100, 64), (1, 5), "embedding"),
    "norm": keras_arrays(lambda: layers.LayerNormalization(), (1, 64), "scale", "bias"),
    "lstm": keras_arrays(
        lambda: layers.LSTM(32), (1, 5, 48), "input", "recurrent", "bias"
    ),
    "gru": keras_arrays(lambda: layers.GRU(32), (1, 5, 48), "input", "recurrent"),
}


def dcgan():
    """The rule of PyTorch's DCGAN tutorial, in its own initializers."""
    conv, norm = nn.Conv2d(8, 32, 4), nn.BatchNorm2d(64)
    nn.init.normal_(conv.weight, 0.0, 0.02)
    nn.init.normal_(norm.weight, 1.0, 0.02)
    nn.init.constant_(norm.bias, 0)
    found = {"kernel": conv.weight, "scale": norm.weight, "bias": norm.bias}
    return {name: p.detach().numpy() for name, p in found.items()}


def gpt2():
    """A GPT-2 of 3 blocks: 6 residual projections."""
    sizes = {"n_layer": 3, "n_embd": 32, "n_head": 2, "vocab_size": 100}
    config = transformers.GPT2Config(n_positions=16, **sizes)
    own = dict(transformers.GPT2LMHeadModel(config).named_parameters())
    names = {
        "wte": "wte.weight", "wpe": "wpe.weight", "up": "h.1.mlp.c_fc.weight",
        "qkv": "h.1.attn.c_attn.weight", "out": "h.1.attn.c_proj.weight",
        "down": "h.2.mlp.c_proj.weight", "up_bias": "h.1.mlp.c_fc.bias",
        "scale": "h.1.ln_1.weight", "norm_bias": "h.1.ln_1.bias",
    }  # fmt: skip
    found = {n: own[f"transformer.{of}"] for n, of in names.items()}
    return {name: p.detach().numpy() for name, p in found.items()}


def main():
    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    packages = (torch, keras, transformers)
    found = {
        "versions": {p.__name__: p.__version__ for p in packages},
        "pytorch": {name: collect(make) for name, make in TORCH.items()},
        "keras": {name: collect(make) for name, make in KERAS.items()},
        "dcgan": {"conv_norm": collect(dcgan)},
        "gpt2": {"model": collect(gpt2)},
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
