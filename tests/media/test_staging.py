"""An output is whole and new, or what was there before; nothing else is ever left."""

from __future__ import annotations

import errno
import importlib.util
from pathlib import Path

import pytest

from animdetail_trt.errors import MediaError
from animdetail_trt.media import staging
from animdetail_trt.media.staging import check_folder_free, check_writable, staged_file, staged_folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_file_replaces_the_old_one_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.write_text("old")
    with staged_file(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
        assert partial.suffix == ".mp4"
    assert target.read_text() == "new"
    assert names(tmp_path) == ["out.mp4"]


def write_half(target: Path, error: BaseException) -> None:
    with staged_file(target) as partial:
        partial.write_text("half")
        raise error


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit, ValueError])
def test_any_exception_keeps_the_old_file(tmp_path: Path, raised: type[BaseException]) -> None:
    target = tmp_path / "out.mp4"
    target.write_text("old")
    with pytest.raises(raised):
        write_half(target, raised())
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.mp4"]


def fill_half(target: Path, error: BaseException) -> None:
    with staged_folder(target) as partial:
        (partial / "a.png").write_text("half")
        raise error


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ValueError])
def test_any_exception_keeps_the_old_folder(tmp_path: Path, raised: type[BaseException]) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "a.png").write_text("old")
    with pytest.raises(raised):
        fill_half(target, raised())
    assert (target / "a.png").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_folder_is_filled_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with staged_folder(target) as partial:
        (partial / "a.png").write_text("new")
        assert not target.exists()
    assert names(target) == ["a.png"]
    assert names(tmp_path) == ["out"]


def test_processes_of_one_number_do_not_share_a_partial_file(tmp_path: Path) -> None:
    """As in containers that share a folder: a fresh copy of the module is another process of the same number."""
    spec = importlib.util.spec_from_file_location("other_process", staging.__file__)
    assert spec is not None
    assert spec.loader is not None
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    ours = {staging._partial_path(tmp_path / "out.mp4") for _ in range(20)}
    assert len(ours) == 20
    assert not ours & {other._partial_path(tmp_path / "out.mp4") for _ in range(20)}


def test_a_folder_of_somebody_elses_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / ".animdetail-theirs"
    theirs.mkdir()
    (theirs / "a.png").touch()
    monkeypatch.setattr(staging, "_partial_path", lambda target: theirs)
    with pytest.raises(MediaError, match="cannot write .*out: File exists"), staged_folder(tmp_path / "out"):
        pass
    assert names(theirs) == ["a.png"]


def test_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    target = tmp_path / "out.mp4"
    target.write_text("old")
    with pytest.raises(MediaError, match=r"out\.mp4: the disk is full\. Free some space"):
        write_half(target, OSError(errno.ENOSPC, "No space left on device"))
    assert target.read_text() == "old"
    assert names(tmp_path) == ["out.mp4"]


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no_such does not exist. Make it"):
        check_writable(tmp_path / "no_such" / "out.mp4")


def test_writable_check_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "out.mp4")
    assert names(tmp_path) == []


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    locked = Path("/proc")  # not even root can make a file there
    with pytest.raises(MediaError, match="cannot write /proc/out.mp4"):
        check_writable(locked / "out.mp4")


def test_read_only_file_system_is_told_of_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    for name in ("touch", "unlink"):  # which there fails for a file that does not exist, too
        monkeypatch.setattr(Path, name, refuse)
    told = rf"cannot write {tmp_path}/out\.mp4: {tmp_path} cannot be written to\. Choose another folder"
    with pytest.raises(MediaError, match=told):
        check_writable(tmp_path / "out.mp4")
    with pytest.raises(MediaError, match=told), staged_file(tmp_path / "out.mp4") as partial:
        partial.touch()


def test_what_file_managers_leave_is_no_stranger(tmp_path: Path) -> None:
    for name in (".DS_Store", ".nomedia", "Thumbs.db", "desktop.ini"):
        (tmp_path / name).touch()
    check_folder_free(tmp_path, ["a.png"])


def test_strange_files_in_an_output_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    check_folder_free(tmp_path, ["a.png", "b.png"])
    (tmp_path / "holiday.txt").touch()
    with pytest.raises(MediaError, match="already holds 'holiday.txt'"):
        check_folder_free(tmp_path, ["a.png", "b.png"])
    with pytest.raises(MediaError, match="is a file"):
        check_folder_free(tmp_path / "a.png", [])


def test_a_link_is_kept_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    real, link = tmp_path / "disk" / "real.mp4", tmp_path / "link.mp4"
    real.write_text("old")
    link.symlink_to(real)
    check_writable(link)
    with staged_file(link) as partial:
        partial.write_text("new")
        assert partial.parent == real.parent
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert names(tmp_path / "disk") == ["real.mp4"]


def test_a_linked_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with staged_folder(tmp_path / "link") as partial:
        (partial / "a.png").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["a.png"]


def test_what_is_no_ordinary_file_is_refused(tmp_path: Path) -> None:
    for target in (tmp_path, Path()):
        with pytest.raises(MediaError, match="it is a folder. Name a file"):
            check_writable(target)
    with pytest.raises(MediaError, match="/dev/null: it is no ordinary file"):
        check_writable(Path("/dev/null"))


def test_names_up_to_the_limit_of_the_file_system(tmp_path: Path) -> None:
    longest = tmp_path / ("x" * 251 + ".mp4")
    check_writable(longest)
    with staged_file(longest) as partial:
        partial.write_text("new")
    assert names(tmp_path) == [longest.name]
    with pytest.raises(MediaError, match="File name too long"):
        check_writable(tmp_path / ("x" * 252 + ".mp4"))


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match=r"cannot write .*a\.mp4"):
        check_writable(tmp_path / "a.mp4")
