"""The bare import is light, and brings every name."""

from tests.support.processes import run_python


def test_bare_import_is_light():
    """No extra is imported, no device is touched, nothing is printed."""
    code = (
        "import sys, einit_jax; "
        "assert 'jax' not in sys.modules; "  # until a name is used
        "assert set(einit_jax.__all__) <= set(dir(einit_jax)); "
        "einit_jax.tune; "
        "heavy = {'sklearn', 'matplotlib', 'orbax', 'beartype'} & set(sys.modules); "
        "from jax._src import xla_bridge; "
        "print(sorted(heavy), xla_bridge.backends_are_initialized())"
    )
    run = run_python(code)
    assert run.stdout.strip() == "[] False"
    assert run.stderr == ""


def test_names_are_those_of_the_rooms():
    """Each is found at its first use, and is then there; no other is."""
    code = (
        "import einit_jax\n"
        "from einit_jax import initializers, tuning\n"
        "assert 'tune' not in vars(einit_jax)\n"
        "assert einit_jax.tune is tuning.tune\n"
        "assert vars(einit_jax)['lsuv'] is initializers.lsuv\n"
        "assert {*einit_jax.__all__} <= vars(einit_jax).keys()\n"
        "from einit_jax import *\n"
        "assert measure is einit_jax.measure\n"
        "print(getattr(einit_jax, 'tunes', 'none'))\n"
    )
    run = run_python(code)
    assert run.stdout.strip() == "none"


def test_nnx_is_imported_where_a_model_of_it_comes_and_not_before():
    """Tuning one of Linen imports neither Flax's room nor ours."""
    code = (
        "import sys, jax, jax.numpy as jnp, einit_jax as ei, flax.linen as nn\n"
        "x, model = jnp.ones((4, 3)), nn.Dense(2)\n"
        "params = model.init(jax.random.key(0), x)['params']\n"
        "ei.tune(model, params, x, lambda y: jnp.mean(y**2))\n"
        "def imported():\n"
        "    return [n for n in ('flax.nnx', 'einit_jax.nnx') if n in sys.modules]\n"
        "print(imported())\n"
        "from flax import nnx\n"
        "model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))\n"
        "ei.tune(model, None, x, lambda y: jnp.mean(y**2))\n"
        "print(imported())\n"
    )
    run = run_python(code)
    assert run.stdout.split("\n")[:2] == ["[]", "['flax.nnx', 'einit_jax.nnx']"]
