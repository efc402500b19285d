"""Frames over a socket, cut anywhere."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.msgpack import Decoder

from nsa_serve.engine.messages import AbortSequences, AddSequence, ToCore
from nsa_serve.engine.transport import HEADER_BYTES, MAX_FRAME_BYTES, Channel, FrameBuffer
from nsa_serve.engine.transport import pack_frame as pack
from nsa_serve.params import SamplingParams


@given(
    lengths=st.lists(st.integers(0, 300), max_size=8),
    cuts=st.lists(st.integers(1, 50), min_size=1),
)
def test_frames_are_whole_however_the_bytes_are_cut(lengths: list[int], cuts: list[int]) -> None:
    frames = [bytes([i]) * length for i, length in enumerate(lengths)]
    stream = b"".join(len(f).to_bytes(HEADER_BYTES, "little") + f for f in frames)
    buffer, start = FrameBuffer(), 0
    received: list[bytes] = []
    while start < len(stream):
        cut = cuts[start % len(cuts)]
        received += buffer.feed(stream[start : start + cut])
        start += cut
    assert received == frames


def test_a_frame_above_the_bound_is_refused_by_its_length_alone() -> None:
    header = (MAX_FRAME_BYTES + 1).to_bytes(HEADER_BYTES, "little")
    with pytest.raises(ValueError, match="exceeds the bound"):
        list(FrameBuffer().feed(header))


@pytest.mark.parametrize(
    "message",
    [
        AddSequence(
            2**40,
            [0, 1, 2**31],
            SamplingParams(seed=2**64 - 1, logit_bias={7: -100.0}, stop=("a", "é")),
            priority=-3,
            salt=b"\x00\xff",
            arrived=1.5,
        ),
        AbortSequences([1, 2, 3]),
    ],
)
def test_messages_arrive_as_they_were_sent(message: ToCore) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(pack(message))
        assert Channel[ToCore](theirs, Decoder(ToCore)).receive(timeout=1) == [message]


def test_receive_returns_at_once_when_nothing_is_there() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        started = time.monotonic()
        assert Channel[ToCore](theirs, Decoder(ToCore)).receive(timeout=0) == []
        assert time.monotonic() - started < 0.1


def test_receive_says_that_the_peer_is_gone() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        with pytest.raises(EOFError):
            Channel[ToCore](theirs, Decoder(ToCore)).receive(timeout=None)


def test_sending_does_not_wait_for_a_peer_that_does_not_read() -> None:
    """A step's outputs to a client that is busy: they are kept, and arrive whole and in order."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = Channel[AbortSequences](ours, Decoder(AbortSequences))
        reader = Channel[AbortSequences](theirs, Decoder(AbortSequences))
        messages = [AbortSequences([i] * 1000) for i in range(1000)]
        started = time.monotonic()
        for message in messages:
            sender.send(message)
        assert time.monotonic() - started < 5
        received: list[AbortSequences] = []
        while len(received) < len(messages):
            received += reader.receive(timeout=0.01)
            assert sender.receive(timeout=0) == []
        assert received == messages


def test_receiving_wakes_up_for_messages_while_something_is_unsent() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = Channel[AbortSequences](ours, Decoder(AbortSequences))
        for i in range(1000):
            sender.send(AbortSequences([i] * 1000))
        theirs.sendall(pack(AbortSequences([7])))
        assert sender.receive(timeout=None) == [AbortSequences([7])]


def _send_all(sender: Channel[AbortSequences], count: int) -> None:
    for i in range(count):
        sender.send(AbortSequences([i] * 10_000))


def test_a_peer_that_is_far_behind_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsa_serve.engine.transport.MAX_UNSENT_BYTES", 100_000)
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as pool:
        sender = Channel[AbortSequences](ours, Decoder(AbortSequences))
        sending = pool.submit(_send_all, sender, 99)
        time.sleep(0.2)
        assert not sending.done()
        reader = Channel[AbortSequences](theirs, Decoder(AbortSequences))
        received: list[AbortSequences] = []
        while not sending.done():
            received += reader.receive(timeout=0.01)
        while len(received) < 99:
            assert sender.receive(timeout=0) == []
            received += reader.receive(timeout=0.01)
        assert [message.sequence_ids[0] for message in received] == list(range(99))
