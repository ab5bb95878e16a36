"""Scales in files: read back bit by bit, and refused where they are not the model's."""

import stat
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import einit_jax as ei
from tests.support.checks import KEY, params_of, quick, refuses, same, uneven
from tests.support.models.dense import CompactMlp

X = jnp.ones((16, 8))
MLP: Any = CompactMlp()


class Net(nnx.Module):
    """A list of layers, whose keys look like numbers."""

    def __init__(self, rngs, depth=2):
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(depth)])

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.tanh(layer(x))
        return x


class Layer(nn.Module):
    """One of a stack."""

    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(8)(x)), None


class Stack(nn.Module):
    """Layers under a scan, which have a factor each."""

    length: int = 3

    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            Layer, variable_axes={"params": 0}, split_rngs={"params": True},
            length=self.length,
        )  # fmt: skip
        return layers(name="layers")(x, None)[0]


class Autoencoder(nn.Module):
    """A method that leaves half of the parameters out."""

    def setup(self):
        self.encoder, self.decoder = nn.Dense(4), nn.Dense(8)

    def __call__(self, x):
        return self.decoder(self.encode(x))

    def encode(self, x):
        return nn.tanh(self.encoder(x))


def scales_of(model, **how):
    """Factors that are all different."""
    if isinstance(model, nnx.Module):
        return uneven(ei.tune(model, None, X, lambda y: jnp.mean(y**2)))
    return uneven(quick(partial(ei.scaled(model).init, **how))(KEY, X)["scales"])


NET: Any = Net(nnx.Rngs(0))
STACK: Any = Stack(3)
FITTING = {
    "linen": (MLP, params_of(MLP)),
    "layers": (STACK, params_of(STACK)),
    "shapes": (MLP, jax.eval_shape(lambda: params_of(MLP))),
    "scaled": (ei.scaled(MLP), params_of(MLP)),
    "nnx": (NET, None),
    "state": (NET, nnx.state(NET, nnx.Param)),
}


@pytest.mark.parametrize("name", FITTING)
def test_what_is_saved_is_read_back(name, tmp_path):
    """Structure and bits; the model, and a call of it, have just these units."""
    model, params = FITTING[name]
    scales = scales_of(getattr(model, "model", model))
    path = ei.save(tmp_path / "scales", scales)
    given: Any
    for given in ((), (model, params), (model, params, X)):
        read = ei.load(path, *given)
        assert same(read, scales)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(read))
    assert [file.name for file in tmp_path.iterdir()] == ["scales"]


def test_keys_like_numbers_stay_strings(tmp_path):
    scales = scales_of(NET)
    assert list(ei.load(ei.save(tmp_path / "f", scales))["layers"]) == ["0", "1"]
    by_number = {"layers": {int(k): v for k, v in scales["layers"].items()}}
    assert same(ei.load(ei.save(tmp_path / "f", by_number)), scales)


@pytest.mark.parametrize(
    "as_saved",
    [
        lambda s: jax.tree.map(float, s),
        lambda s: jax.tree.map(np.asarray, s),
        lambda s: jax.tree.map(lambda x: np.asarray(x, np.float64), s),
        flax.core.freeze,
    ],
    ids=["floats", "numpy", "float64", "frozen"],
)
def test_numbers_of_any_type_become_float32(as_saved, tmp_path):
    scales = scales_of(MLP)
    assert same(ei.load(ei.save(tmp_path / "f", as_saved(scales))), scales)


def test_split_arrays_are_gathered(tmp_path):
    """Each layer's factor on a device of its own, and all of them on all devices."""
    mesh = Mesh(np.array(jax.devices()[:3]), ("layers",))
    scales = scales_of(STACK)

    def place(x):
        spec = P("layers") if x.ndim else P()
        return jax.device_put(x, NamedSharding(mesh, spec))

    split = jax.tree.map(place, scales)
    shardings = [leaf.sharding for leaf in jax.tree.leaves(split)]
    assert not all(sharding.is_fully_replicated for sharding in shardings)
    assert same(ei.load(ei.save(tmp_path / "f", split)), scales)


def test_arrays_of_other_processes_are_refused(tmp_path, monkeypatch):
    scales = {"Dense_0": {"output": jnp.ones(3)}}
    array_type = type(scales["Dense_0"]["output"])
    monkeypatch.setattr(array_type, "is_fully_addressable", False)
    ei.save(tmp_path / "f", scales)  # each process has all of it
    monkeypatch.setattr(array_type, "is_fully_replicated", False)
    with refuses(ValueError, match="'Dense_0/output' are spread over devices of other"):
        ei.save(tmp_path / "g", scales)
    assert not (tmp_path / "g").exists()


@pytest.mark.parametrize(
    ("scales", "exception", "words"),
    [
        (3, TypeError, "scales are 3, a int, expected the dict"),
        (params_of(MLP), ValueError, "an entry '.*/(bias|kernel)', expected only outp"),
        ({"a": {"output": 1j}}, TypeError, "at 'a/output' are 1j, expected real"),
        ({"a": {"output": "1"}}, TypeError, "at 'a/output' are '1'"),
        ({"a": {"output": None}}, TypeError, "at 'a/output' are None"),
        ({"a": {"output": KEY}}, TypeError, "at 'a/output' are key"),
    ],
)
def test_what_is_no_tree_of_scales_is_not_saved(scales, exception, words, tmp_path):
    """A file that is there stays as it is."""
    (tmp_path / "f").write_text("old")
    with refuses(exception, match=words):
        ei.save(tmp_path / "f", scales)
    assert (tmp_path / "f").read_text() == "old"


def test_traced_scales_are_not_saved(tmp_path):
    with refuses(TypeError, match="'Dense_0/output' are traced; call save outside"):
        jax.jit(lambda s: ei.save(tmp_path / "f", s))({"Dense_0": {"output": 1.0}})


@pytest.mark.parametrize(
    ("path", "exception", "words"),
    [(3, TypeError, "path is a int"), ("none/f", ValueError, "No such file or dir")],
)
def test_paths_are_checked(path, exception, words):
    with refuses(exception, match=words):
        ei.save(path, {})
    missing = OSError if exception is ValueError else TypeError
    with refuses(missing, match=words):
        ei.load(path)


def test_mode_bits_are_kept(tmp_path):
    file = tmp_path / "f"
    file.write_text("old")
    file.chmod(0o640)
    ei.save(file, scales_of(MLP))
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


PACKED = flax.serialization.msgpack_serialize
ONE = np.float32(1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is cut off, or no file of scales"),
        (b"\x93NUMPY", "is cut off, or no file of scales"),
        (PACKED([1.0]), "holds a list and no scales"),
        (PACKED(3), "holds a int and no scales"),
        (PACKED({"a": {"output": 1.0}}), "has 1.0 at 'a/output', expected float32"),
        (PACKED({"a": {"output": np.ones(2)}}), r"has float64\[2\] at 'a/output'"),
        (PACKED({"a": {"kernel": np.ones(2, "f")}}), r"has float32\[2\] at 'a/kern"),
    ],
    ids=["empty", "numpy", "list", "number", "floats", "float64", "params"],
)
def test_other_files_are_refused(content, words, tmp_path):
    (tmp_path / "f").write_bytes(content)
    with refuses(ValueError, match=f"/f {words}"):
        ei.load(tmp_path / "f")


def test_every_beginning_of_a_file_is_refused(tmp_path):
    """And the whole of it with anything behind it, too."""
    file = ei.save(tmp_path / "f", {"a": {"output": 1.0}})
    content = file.read_bytes()
    for part in [content[:n] for n in range(len(content))] + [content + b"\0"]:
        file.write_bytes(part)
        with refuses(ValueError, match="is cut off, or no file of scales"):
            ei.load(file)
    file.write_bytes(content)
    assert ei.load(file) == {"a": {"output": 1.0}}


def without(tree, *path):
    """A nested dict without one entry."""
    name, *rest = path
    if not rest:
        return {k: v for k, v in tree.items() if k != name}
    return {**tree, name: without(tree[name], *rest)}


SCALES = scales_of(MLP)
OTHERS = [
    ({**SCALES, "Dense_9": SCALES["Dense_0"]}, MLP,
     "at 'Dense_9' the file has .*output.*, the model has only Dense_0, Dense_1.* t"),
    (without(SCALES, "Dense_1"), MLP,
     r"'Dense_1' the file has nothing, the model has (bias|kernel) \(.*\(.*\)"),
    (without(SCALES, "Dense_1", "output"), MLP, "scales at 'Dense_1' lack output"),
    (scales_of(Stack(5)), STACK, r"output.* \(5,\), the model has .*\(3, .*"),
    (scales_of(Net(nnx.Rngs(0), 3)), NET,
     "at 'layers/2' the file has .*, the model has only 0, 1 there"),
    (without(scales_of(NET), "layers", "1"), NET, "at 'layers/1' the file has nothing"),
]  # fmt: skip


@pytest.mark.parametrize("with_inputs", [False, True], ids=["params", "inputs"])
@pytest.mark.parametrize(("scales", "model", "words"), OTHERS)
def test_scales_of_other_models_are_refused(
    scales, model, words, with_inputs, tmp_path
):
    """Each error names the place, what the file has and what the model has."""
    file = ei.save(tmp_path / "f", scales)
    assert same(ei.load(file), scales)
    params = None if model is NET else params_of(model)
    given: Any = (model, params, X) if with_inputs else (model, params)
    if with_inputs and "nothing" in words:  # a trace tells of units, not of arrays
        words = words.partition(", the")[0] + ", the model has a unit with factors"
    elif with_inputs and "5," in words:
        words = r"\(5,\), the model has .*\(3,\)"
    with refuses(ValueError, match=f"f(:| is of another model than).*{words}"):
        ei.load(file, *given)


def test_a_call_tells_what_a_method_leaves_out(tmp_path):
    """Of the parameters alone nobody knows which units a method has."""
    model: Any = Autoencoder()
    params = params_of(model)
    how: Any = {"method": model.encode}
    scales = scales_of(model, **how)
    file = ei.save(tmp_path / "f", scales)
    with refuses(ValueError, match=r"'decoder' the file has nothing.*\(pass input_fn"):
        ei.load(file, model, params)
    assert same(ei.load(file, model, params, X, **how), scales)
    with refuses(ValueError, match="'decoder' the file has nothing, .* a unit with"):
        ei.load(file, model, params, X)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((MLP,), r"holds none; pass ei.load\(path, model, params\)"),
        ((None, None, X), "load got input_fn and no model"),
        ((3, {}), "model is a int|model is 3"),
    ],
)
def test_what_cannot_be_checked_is_told(given, words, tmp_path):
    file = ei.save(tmp_path / "f", SCALES)
    with refuses(TypeError, match=words):
        ei.load(file, *given)
    assert same(ei.load(file, None, params_of(MLP)), SCALES)
