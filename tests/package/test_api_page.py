"""The reference of everything public: written of docstrings, and not since changed."""

import re

import pytest

import einit_jax as ei
from tests.support import api_page

TEXT = """\
One sentence.

A table | of no kind.

Args:
    first, second: what both are,
        on two lines.
    *more: others.

Raises:
    ValueError: where they are not.

Example:
    >>> 1 + 1
    2

Source: ours."""
MARKDOWN = """\
One sentence.

A table | of no kind.

**Arguments**

- `first`, `second`: what both are,
  on two lines.
- `*more`: others.

**Raises**

- `ValueError`: where they are not.

**Example**

```python
>>> 1 + 1
2
```

**Source**: ours.
"""


def test_the_page_is_what_docstrings_say_now():
    """If not: `python -m tests.support.api_page`."""
    assert api_page.PAGE.read_text() == api_page.page()


def test_a_docstring_that_changes_changes_the_page(monkeypatch):
    monkeypatch.setattr(ei.general_relu, "__doc__", "Something else.")
    assert api_page.PAGE.read_text() != api_page.page()


def test_every_public_name_has_one_heading():
    names = re.findall(r"^### `(.*)`$", api_page.page(), re.M)
    assert sorted(names) == sorted(ei.__all__)


@pytest.mark.parametrize("text", [TEXT, TEXT.partition("\n\nArgs:")[0]])
def test_sections_become_lists_and_code(text):
    sections = "Args:" in text
    found = api_page.markdown(text)
    assert found == (MARKDOWN if sections else text + "\n")


def test_heads_are_what_the_source_says():
    def function(one: int, *, two: "str" = "x", **rest: float) -> None:
        raise NotImplementedError

    head = 'function(one: int, *, two: "str" = "x", **rest: float) -> None'
    assert api_page.signature(function) == head
    assert api_page.head("f", ["a" * 50, "b" * 50]).count("\n") == 3
