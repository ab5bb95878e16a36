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
