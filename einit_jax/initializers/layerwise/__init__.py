"""TODO door."""

from ._lsuv import lsuv as lsuv
