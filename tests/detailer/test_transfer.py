from __future__ import annotations

import pytest
import torch
from late_stream import LateCopyStream

from animdetail_trt.detailer.transfer import Lane

FRAME_BYTES = 4 * 5 * 3 * 4


def rand(count: int) -> torch.Tensor:
    return torch.rand(count, 4, 5, 3, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("frames_at_once", [0.5, 1, 2, 3, 100])
def test_there_and_back_in_pieces(frames_at_once: float) -> None:
    """Also where a frame is larger than a buffer, and where pieces are more than buffers."""
    stream = LateCopyStream()
    lane = Lane(stream, int(frames_at_once * FRAME_BYTES))
    frames = rand(7)
    there = lane.upload(frames)
    assert torch.equal(there, frames)
    assert there.data_ptr() != frames.data_ptr()
    back = torch.zeros_like(frames)
    lane.download(there, back)
    lane.finish()
    assert torch.equal(back, frames)
    pieces = -(-7 // max(1, int(frames_at_once)))
    assert stream.copies == 2 * pieces
    assert stream.staged_bytes <= 2 * max(1, min(7, int(frames_at_once))) * FRAME_BYTES


def test_rows_of_larger_frames_into_memory_that_is_there() -> None:
    lane, frames = Lane(LateCopyStream(), 2 * FRAME_BYTES), rand(5)
    crop, target = frames[:, 1:3, 2:5], torch.zeros(5, 2, 3, 3)
    assert lane.upload(crop, target) is target
    expected = crop.clone()
    frames.zero_()  # the host may change it at once
    assert torch.equal(target, expected)


def test_bytes_arrive_as_the_floats_that_they_stand_for() -> None:
    every = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1)
    lane, arrived = Lane(LateCopyStream(), 100), torch.zeros(256, 1, 1, 1)
    lane.download(every, arrived)
    lane.finish()
    assert torch.equal(arrived, every.float() / 255)


def test_downloads_wait_for_one_another_and_not_the_host_for_them() -> None:
    """Two buffers: the first piece is only waited for when the third needs its buffer."""
    stream = LateCopyStream()
    lane, frames, arrived = Lane(stream, FRAME_BYTES), rand(3), torch.zeros(3, 4, 5, 3)
    lane.download(frames[:2], arrived[:2])
    assert not arrived.any()
    lane.download(frames[2:], arrived[2:])
    assert torch.equal(arrived[0], frames[0])
    assert not arrived[1:].any()
    lane.finish()
    assert torch.equal(arrived, frames)


def test_calls_come_after_what_they_follow_and_in_order() -> None:
    lane, frames, arrived, called = Lane(LateCopyStream(), FRAME_BYTES), rand(4), torch.zeros(4, 4, 5, 3), []
    for i in range(4):
        lane.download(frames[i : i + 1], arrived[i : i + 1])
        lane.then(lambda i=i: called.append((i, torch.equal(arrived[i], frames[i]))))
        lane.then(lambda i=i: called.append((i, bool(arrived[i].any()))))
    lane.then(lambda: called.append(("last", True)))
    assert called == [(0, True), (0, True), (1, True), (1, True)]
    lane.finish()
    assert called == [(i, True) for i in (0, 0, 1, 1, 2, 2, 3, 3)] + [("last", True)]
    lane.finish()  # once is all
    assert len(called) == 9
