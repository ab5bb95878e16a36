"""Names and scalars of tables."""

import struct

import pytest
import tensorboardX
from tensorboardX.proto.event_pb2 import Event

from einit_jax.reporting import shortened
from tests.support.checks import synthetic


def test_long_names_keep_their_levels_and_numbers():
    name = "encoder/encoderblock_0/MultiHeadDotProductAttention_12/query[3]"
    assert shortened(name, 30) == "enc…/enc…_0/Mul…_12/que…[3]"
    assert shortened("Dense_0", 30) == "Dense_0"
    assert shortened("a_1/" * 20 + "b", 10) == "…a_1/a_1/b"


def test_scalars_are_taken_by_a_summary_writer(before, history, tmp_path):
    """Tags and values come back from the event file as they were."""
    scalars = before.scalars() | history.scalars() | synthetic(0.5).scalars()
    assert scalars["Dense_0/output_rms"] == pytest.approx(float(before.output_rms[0]))
    with tensorboardX.SummaryWriter(str(tmp_path)) as writer:
        for name, value in scalars.items():
            writer.add_scalar(name, value, 0)
    (file,) = tmp_path.iterdir()
    data, found = file.read_bytes(), {}
    while data:  # records: length, its checksum, an event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found |= {v.tag: v.simple_value for v in event.summary.value}
        data = data[16 + length :]
    assert found == pytest.approx(scalars)
