"""A digest is that of the file as it is now, and is taken once for as long as it stays so."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest

from animdetail_trt.errors import CheckpointError
from animdetail_trt.trt.digests import Digests

LONG_AGO = 1_700_000_000_000_000_000  # ns: any time that is no longer this moment


class Reads:
    """Counts the bytes that were hashed."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []

    def __call__(self, done: int, size: int) -> None:
        self.steps.append((done, size))


def write(path: Path, data: bytes, time_ns: int | None = LONG_AGO) -> str:
    path.write_bytes(data)
    if time_ns is not None:
        os.utime(path, ns=(time_ns, time_ns))
    return hashlib.sha256(data).hexdigest()


def test_a_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "größe 1.safetensors"
    sha256 = write(path, b"x" * 9_000_000)
    first, again, anew = Reads(), Reads(), Reads()
    digests = Digests(tmp_path / "engines")
    assert digests.of(path, first) == sha256
    assert first.steps[-1] == (9_000_000, 9_000_000)
    assert [done for done, _ in first.steps] == sorted({done for done, _ in first.steps})
    assert len(first.steps) > 1
    assert digests.of(path, again) == Digests(tmp_path / "engines").of(path, anew) == sha256
    assert again.steps == anew.steps == []


def test_a_link_is_the_file_it_points_to(tmp_path: Path) -> None:
    sha256 = write(tmp_path / "file", b"data")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    digests, reads = Digests(tmp_path), Reads()
    digests.of(tmp_path / "file")
    assert digests.of(tmp_path / "link", reads) == sha256
    assert reads.steps == []
    other = write(tmp_path / "other", b"also")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    assert digests.of(tmp_path / "link") == other


@pytest.mark.parametrize("data", [b"another size", b"Data"])
@pytest.mark.parametrize("time_ns", [LONG_AGO, LONG_AGO + 1, None])
def test_a_changed_file_is_noticed(tmp_path: Path, data: bytes, time_ns: int | None) -> None:
    """Also one of the same size and date: a file that is copied over it with its date."""
    write(tmp_path / "file", b"data")
    digests = Digests(tmp_path)
    digests.of(tmp_path / "file")
    time.sleep(0.05)  # more than a tick of the kernel's clock, which stamps the change
    sha256 = write(tmp_path / "file", data, time_ns)
    assert digests.of(tmp_path / "file") == Digests(tmp_path).of(tmp_path / "file") == sha256


def test_a_file_written_this_moment_is_not_remembered(tmp_path: Path) -> None:
    """It may change again within the same tick of the clock."""
    digests, reads = Digests(tmp_path), Reads()
    sha256 = write(tmp_path / "file", b"data", None)
    assert digests.of(tmp_path / "file") == digests.of(tmp_path / "file", reads) == sha256
    assert reads.steps == [(4, 4)]


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"7", b"\xff\xfe", b"[" * 100_000, b'{"%s": 7}', b'{"%s": {}}'])
def test_a_damaged_memory_is_ignored(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "file"
    sha256 = write(path, b"data")
    (tmp_path / "digests.json").write_bytes(damage.replace(b"%s", bytes(path)))
    assert Digests(tmp_path).of(path) == sha256
    reads = Reads()
    assert Digests(tmp_path).of(path, reads) == sha256
    assert reads.steps == []


def test_a_digest_that_is_none_is_ignored(tmp_path: Path) -> None:
    sha256 = write(tmp_path / "file", b"data")
    Digests(tmp_path).of(tmp_path / "file")
    known = json.loads((tmp_path / "digests.json").read_text())
    known[str(tmp_path / "file")]["sha256"] = 7
    (tmp_path / "digests.json").write_text(json.dumps(known))
    assert Digests(tmp_path).of(tmp_path / "file") == sha256


def test_two_processes_learn_from_each_other(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / name, name.encode())
    one, two = Digests(tmp_path), Digests(tmp_path)
    one.of(tmp_path / "a")
    two.of(tmp_path / "b")
    one.of(tmp_path / "c")
    reads = Reads()
    for name in "abc":
        Digests(tmp_path).of(tmp_path / name, reads)
    assert reads.steps == []


def test_where_nothing_can_be_written_it_still_hashes(tmp_path: Path) -> None:
    sha256 = write(tmp_path / "file", b"data")
    (tmp_path / "no folder").write_text("a file")
    digests, reads = Digests(tmp_path / "no folder"), Reads()
    assert digests.of(tmp_path / "file") == digests.of(tmp_path / "file", reads) == sha256
    assert reads.steps == []  # this process remembers


def test_a_file_that_cannot_be_read_or_is_being_written(tmp_path: Path) -> None:
    digests = Digests(tmp_path)
    with pytest.raises(CheckpointError, match=r"missing\.safetensors: No such file"):
        digests.of(tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match="directory"):
        digests.of(tmp_path)
    write(tmp_path / "file", b"data")

    def append(done: int, size: int) -> None:
        with (tmp_path / "file").open("ab") as file:
            file.write(b"x" * (done < 10))

    with pytest.raises(CheckpointError, match="changed while it was read"):
        digests.of(tmp_path / "file", append)
