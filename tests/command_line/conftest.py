"""A file of a user's, with jobs that work and jobs that do not."""

import sys
from pathlib import Path

import pytest

JOBS = '''"""Jobs; a comment marks the line that an error is to name."""

import functools

import flax.linen as nn
import helper
import jax
import jax.numpy as jnp

X = jax.random.normal(jax.random.key(1), (16, 8))
MODEL = nn.Dense(4)
PARAMS = MODEL.init(jax.random.key(0), X)["params"]


def plain(y):
    return jnp.mean((y - 1) ** 2)


def case():
    return MODEL, PARAMS, X, plain


def noisy():
    print("\\u00e9")
    return case()


def bad_job():
    raise KeyError("width")  # bad_job


def bad_helper():
    return helper.build()


def bad_argument(width):  # bad_argument
    return case()


def bad_chain():
    try:
        helper.build()
    except ZeroDivisionError as error:
        raise RuntimeError("no config:\\n  none at all") from error  # bad_chain


def bad_exit():
    raise SystemExit(0)  # bad_exit


class Branching(nn.Module):
    @nn.compact
    def __call__(self, x):
        if x.sum() > 0:  # bad_model
            x = 2 * x
        return nn.Dense(4)(x)


def bad_model():
    return Branching(), {"Dense_0": PARAMS}, X, plain


def failing(y):
    return [][len(y)]  # bad_loss


def bad_loss():
    return MODEL, PARAMS, X, failing


def draw(key):
    return jnp.ones((2, 3)) @ jnp.ones((2, 3))  # bad_inputs


def bad_inputs():
    return MODEL, PARAMS, draw, plain


def bad_params():  # bad_params
    return MODEL, {"kernel": PARAMS["kernel"]}, X, plain


def bad_keyword():  # bad_keyword
    return MODEL, PARAMS, X, plain, {"nonsense": 3}


def bad_number():  # bad_number
    return MODEL, PARAMS, X, plain, {"batch_size": 4}


bad_partial = functools.partial(lambda draws: (*case(), {"draws": draws}), 0)


class Speechless(Exception):
    def __str__(self):
        raise ValueError


def bad_text():
    raise Speechless  # bad_text


def no_tuple():
    return case


def no_options():
    return (*case(), 3)
'''
HELPER = '''"""Beside it."""


def build():
    return 1 / 0  # bad_helper
'''


@pytest.fixture
def jobs(tmp_path, monkeypatch) -> Path:
    """The file, in the current folder; nothing that it imports stays."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = dict(sys.modules)
    (tmp_path / "own_jobs.py").write_text(JOBS)
    (tmp_path / "helper.py").write_text(HELPER)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "own_jobs.py"
    for name in ("own_jobs", "_job", "helper", "broken"):
        sys.modules.pop(name, None)
    assert before.keys() <= sys.modules.keys()
