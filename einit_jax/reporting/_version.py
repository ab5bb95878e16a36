"""The version of the package, from its metadata."""

from importlib.metadata import PackageNotFoundError, version


def _installed_version() -> str:
    try:
        return version("einit_jax")
    except PackageNotFoundError:  # run from its source, not installed
        return "0+unknown"


__version__ = _installed_version()
