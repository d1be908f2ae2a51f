"""The artifact store: exact round trips, damage of any kind noticed, atomic under kills, shared by processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sparse_ga import codec, store
from sparse_ga.errors import OutputError
from sparse_ga.products import PairMatches, VerifiedMatches, View
from sparse_ga.stages.calibrate import Calibration
from sparse_ga.store import Key, Store, digest_of


def make_view(seed: int = 0, name: str = "a.png") -> View:
    rng = np.random.default_rng(seed)
    return View(
        name,
        rng.integers(0, 255, (16, 32, 3)).astype(np.uint8),
        rng.random((16, 32)) > 0.5,
        None,
        np.eye(3),
        (32, 16),
        "digest",
        "exif",
    )


def make_key(label: str = "a", **inputs: str) -> Key:
    return Key("ingest", 1, label, {"ingest.long_side": 512}, inputs)


def same(a: View, b: View) -> bool:
    return (
        a.name == b.name
        and np.array_equal(a.image, b.image)
        and np.array_equal(a.mask, b.mask)
        and a.intrinsics is b.intrinsics is None
        and np.array_equal(a.working_from_source, b.working_from_source)
        and (a.source_size, a.digest, a.intrinsics_source) == (b.source_size, b.digest, b.intrinsics_source)
    )


def test_codec_round_trip_keeps_types_values_and_none():
    matches = PairMatches(np.ones((3, 2), np.float32), np.zeros((3, 2), np.float32), np.ones(3, np.float32))
    value = VerifiedMatches(matches, 0.1 + 0.2, "essential", None)
    back = codec.decode(codec.encode(value))
    assert isinstance(back, VerifiedMatches)
    assert back.score == 0.1 + 0.2
    assert back.rejected is None
    assert back.matches.xy_i.dtype == np.float32
    np.testing.assert_array_equal(back.matches.xy_i, matches.xy_i)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (0, 4), (2, 3, 4)])
def test_codec_keeps_arrays_of_every_type_and_shape(dtype: str, shape: tuple[int, ...]):
    array = np.asarray(np.random.default_rng(0).random(shape) * 3).astype(dtype)
    back = codec.decode(codec.encode({"x": array, "turned": array.T}))
    assert back["x"].dtype == array.dtype
    np.testing.assert_array_equal(back["x"], array)
    np.testing.assert_array_equal(back["turned"], array.T)


def test_codec_keeps_nested_values_and_special_floats():
    value = {"a": (1, "two", None, [True, 2.5], float("inf")), "b": {"c": np.float32(0.5), "d": ()}}
    assert codec.decode(codec.encode(value)) == {"a": value["a"], "b": {"c": 0.5, "d": ()}}


@pytest.mark.slow
def test_codec_bytes_depend_on_the_value_only():
    first = codec.encode(make_view())
    code = "import sys; sys.path.insert(0, sys.argv[1]); from test_store import make_view; from sparse_ga import codec;"
    code += "sys.stdout.buffer.write(codec.encode(make_view()))"
    other = subprocess.run([sys.executable, "-c", code, str(Path(__file__).parent)], capture_output=True, check=True)
    assert other.stdout == first
    assert codec.encode(make_view(1)) != first


def test_codec_refuses_what_it_cannot_store():
    with pytest.raises(TypeError, match="object"):
        codec.encode({"a": object()})
    with pytest.raises(TypeError, match="string keys"):
        codec.encode({1: 2})


def test_codec_builds_only_products_of_this_package():
    blob = codec.encode(make_view())
    for target in ("sparse_ga.store:Store", "os:system", "subprocess:Popen", "sparse_ga.products:check"):
        tree = {"object": target, "fields": []}
        with pytest.raises(codec.DamagedArtifact):
            codec._unpack(tree, {})
    assert codec.intact(blob)


def test_every_changed_byte_and_every_truncation_is_noticed():
    blob = codec.encode(make_view(), {"label": "a"})
    assert codec.intact(blob)
    positions = {*range(0, 700), *range(0, len(blob), 37), len(blob) - 1}
    for position in positions:
        damaged = bytearray(blob)
        damaged[position] ^= 1 << (position % 8)
        assert not codec.intact(bytes(damaged)), position
    for length in {0, 1, 7, 8, 9, 60, 100, len(blob) // 2, len(blob) - 1}:
        assert not codec.intact(blob[:length]), length
    assert not codec.intact(blob + b"\0")


def test_an_artifact_of_a_changed_product_counts_as_missing(tmp_path: Path):
    shelf = Store(tmp_path)
    key = make_key()
    tree = codec.encode(Calibration(np.ones(2), np.ones(2, bool))).replace(b"sufficient", b"sufficienT")
    at = tree.index(b"sha256") + len(b'sha256\\":\\"')
    import hashlib

    blob = tree[:at] + b"0" * 64 + tree[at + 64 :]
    blob = tree[:at] + hashlib.sha256(blob).hexdigest().encode() + tree[at + 64 :]
    store.write_atomically(shelf.path(key), blob)
    assert codec.intact(blob)
    assert shelf.get(key) is None
    assert not shelf.has(key)


def test_store_returns_what_was_put_and_none_otherwise(tmp_path: Path):
    shelf = Store(tmp_path / "deep" / "cache")
    view = make_view()
    assert shelf.get(make_key()) is None
    assert not shelf.verify(make_key())
    size = shelf.put(make_key(), view)
    assert same(shelf.get(make_key()), view)
    assert shelf.verify(make_key())
    assert shelf.get(make_key(x="1")) is None
    assert shelf.usage()[0].stage == "ingest"
    assert shelf.usage()[0].size_bytes == size == shelf.path(make_key()).stat().st_size


def test_key_depends_on_stage_version_config_and_inputs_but_not_on_the_label():
    base = make_key("a", x="1")
    assert base.digest == make_key("b", x="1").digest
    others = [
        make_key("a", x="2"),
        make_key("a", y="1"),
        Key("match", 1, "a", base.config, base.inputs),
        Key("ingest", 2, "a", base.config, base.inputs),
        Key("ingest", 1, "a", {"ingest.long_side": 511}, base.inputs),
    ]
    assert len({base.digest, *(key.digest for key in others)}) == len(others) + 1


def test_digest_separates_values_that_look_alike():
    arrays = [np.zeros(4, np.uint8), np.zeros((2, 2), np.uint8), np.zeros(1, np.uint32)]
    values = [("ab", "c"), ("a", "bc"), ("abc",), (None, "abc"), ("", "abc"), (b"abc",), *((a,) for a in arrays)]
    assert len({digest_of(*value) for value in values}) == len(values)


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "grow", "folder"])
def test_a_damaged_file_is_removed_and_counts_as_missing(tmp_path: Path, damage: str):
    shelf = Store(tmp_path)
    key = make_key()
    shelf.put(key, make_view())
    path = shelf.path(key)
    blob = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
        assert shelf.get(key) is None
        return
    changed = {"truncate": blob[:-5], "empty": b"", "flip": blob[:-1] + bytes([blob[-1] ^ 1]), "grow": blob + b"x"}
    path.write_bytes(changed[damage])
    assert shelf.get(key) is None
    assert not path.exists()
    assert "ingest of a" in shelf.damaged[0]
    shelf.put(key, make_view())
    assert same(shelf.get(key), make_view())


def test_a_full_disk_leaves_the_old_file_and_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shelf = Store(tmp_path)
    shelf.put(make_key(), make_view(0))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"disk is full.*sparse-ga clean"):
        shelf.put(make_key(), make_view(1))
    with pytest.raises(OutputError):
        shelf.put(make_key(x="2"), make_view(1))
    monkeypatch.undo()
    assert same(shelf.get(make_key()), make_view(0))
    assert [path.name for path in (tmp_path / "ingest").iterdir()] == [shelf.path(make_key()).name]


def test_a_cache_that_cannot_be_a_folder_is_a_clear_error(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cache"):
        Store(tmp_path / "file")
    with pytest.raises(OutputError, match="cache"):
        Store(tmp_path / "file" / "below")


def test_temporary_files_of_dead_processes_are_removed_and_of_living_ones_kept(tmp_path: Path):
    shelf = Store(tmp_path)
    shelf.put(make_key(), make_view())
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    folder = tmp_path / "ingest"
    names = {pid: f".{store._host()}~{pid}~abcdef.tmp" for pid in (dead.pid, os.getpid())}
    for name in names.values():
        (folder / name).write_bytes(b"half")
    old_foreign = folder / ".otherhost~1~abcdef.tmp"
    new_foreign = folder / ".otherhost~1~abcdee.tmp"
    for path in (old_foreign, new_foreign):
        path.write_bytes(b"half")
    os.utime(old_foreign, (0, 0))
    Store(tmp_path)
    left = {path.name for path in folder.iterdir()}
    assert left == {names[os.getpid()], new_foreign.name, shelf.path(make_key()).name}


@pytest.mark.skipif(sys.platform != "linux", reason="process numbers of containers are a matter of Linux")
def test_temporary_files_of_another_container_of_the_same_name_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Its process numbers mean nothing here."""
    shelf = Store(tmp_path)
    shelf.put(make_key(), make_view())
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    here = store._host()
    with monkeypatch.context() as patch:
        patch.setattr(os, "readlink", lambda path: "pid:[4026539999]")
        there = store._host()
    assert here.startswith(socket.gethostname())
    assert here == store._host() != there
    path = tmp_path / "ingest" / f".{there}~{dead.pid}~abcdef.tmp"
    path.write_bytes(b"half")
    Store(tmp_path)
    assert path.exists()
    os.utime(path, (0, 0))
    Store(tmp_path)
    assert not path.exists()


def test_a_mount_that_cannot_sync_folders_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    shelf = Store(tmp_path)
    shelf.put(make_key(), make_view())
    assert same(shelf.get(make_key()), make_view())


def test_a_file_that_another_process_reads_need_not_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on Windows, where that raises."""
    shelf = Store(tmp_path)
    size = shelf.put(make_key(), make_view())

    def held(source: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", held)
    assert shelf.put(make_key(), make_view()) == size
    with pytest.raises(OutputError, match="cannot be written"):
        shelf.put(make_key(x="1"), make_view())
    shelf.path(make_key()).write_bytes(b"damaged")
    with pytest.raises(OutputError, match="cannot be written"):
        shelf.put(make_key(), make_view())
    assert not list(tmp_path.glob("*/.*.tmp"))


def test_what_cannot_be_opened_now_is_missing_but_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shelf = Store(tmp_path)
    shelf.put(make_key(), make_view())

    def held(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", held)
        assert shelf.get(make_key()) is None
        assert not shelf.verify(make_key())
    assert shelf.damaged == []
    assert same(shelf.get(make_key()), make_view())


def _write_forever(root: str) -> None:
    shelf = Store(Path(root))
    rng = np.random.default_rng(os.getpid())
    while True:
        n = int(rng.integers(0, 8))
        shelf.put(make_key(x=str(n)), make_view(n))


def test_killed_writers_never_leave_a_damaged_file(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    rng = np.random.default_rng(0)
    for _ in range(12):
        process = context.Process(target=_write_forever, args=(str(tmp_path),))
        process.start()
        time.sleep(float(rng.uniform(0.01, 0.06)))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        shelf = Store(tmp_path)
        for n in range(8):
            key = make_key(x=str(n))
            if shelf.has(key):
                assert same(shelf.get(key), make_view(n))
        assert not list(tmp_path.glob("*/.*.tmp"))
        assert not shelf.damaged


def _write_some(root: str) -> None:
    shelf = Store(Path(root))
    for n in range(40):
        shelf.put(make_key(x=str(n % 8)), make_view(n % 8))
        assert same(shelf.get(make_key(x=str(n % 8))), make_view(n % 8))


def test_two_processes_share_a_store(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write_some, args=(str(tmp_path),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    shelf = Store(tmp_path)
    assert all(same(shelf.get(make_key(x=str(n))), make_view(n)) for n in range(8))
    assert shelf.usage()[0].entries == 8


def test_provenance_is_readable_from_the_header_alone():
    blob = codec.encode(make_view(), make_key("a", x="1").provenance)
    length = int.from_bytes(blob[:8], "little")
    assert codec.provenance(blob[: 8 + length]) == make_key("a", x="1").provenance
    assert codec.provenance(b"nonsense") is None
    assert codec.provenance(b"") is None
