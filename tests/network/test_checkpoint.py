"""Loading weights: every container, every way it can go wrong, and nothing ever executed."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import huggingface_hub.utils as hub_utils
import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from small_networks import CALL, TINY, random_model, small_mast3r, write_pth

from sparse_ga.cli import main
from sparse_ga.errors import OutputError
from sparse_ga.network import checkpoint as checkpoint_module
from sparse_ga.network import hub
from sparse_ga.network.checkpoint import convert_weights, describe_weights, fetch_weights, load_checkpoint, save_model
from sparse_ga.network.errors import (
    CheckpointDamaged,
    CheckpointError,
    CheckpointNotFound,
    CheckpointUnavailable,
    KeyMismatch,
    LicenceNotice,
    ShapeMismatch,
    UncheckedWeights,
    UnknownArchitecture,
    UnsafeCheckpoint,
)

pytestmark = pytest.mark.filterwarnings(
    "ignore::sparse_ga.network.errors.LicenceNotice", "ignore::sparse_ga.network.errors.UncheckedWeights"
)


def same_weights(model: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two networks have equal names, shapes and values."""
    a, b = model.state_dict(), other.state_dict()
    return list(a) == list(b) and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return random_model(TINY)


def test_pth_and_folder_give_the_same_network(tmp_path: Path, model) -> None:
    pth = load_checkpoint(write_pth(model, tmp_path / "a.pth"))
    info = convert_weights(tmp_path / "a.pth", tmp_path / "folder")
    folder = load_checkpoint(tmp_path / "folder")
    assert same_weights(model, pth.model)
    assert same_weights(model, folder.model)
    assert pth.info.digest == info.digest == folder.info.digest
    assert (pth.info.checksum, folder.info.checksum) == ("crc32", "sha256")
    assert info.parameters == sum(p.numel() for p in model.parameters())
    assert not folder.model.training
    assert not any(p.requires_grad for p in folder.model.parameters())


def test_half_precision_is_smaller_and_close(tmp_path: Path, model) -> None:
    full = save_model(model, tmp_path / "full", "Apache-2.0")
    half = save_model(model, tmp_path / "half", "Apache-2.0", half=True)
    loaded = load_checkpoint(tmp_path / "half").model
    assert half.size_bytes < 0.62 * full.size_bytes
    assert half.dtype == "float16"
    assert half.digest != full.digest
    for a, b in zip(model.parameters(), loaded.parameters(), strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_weight_with_two_names_is_stored_once_and_may_come_under_either(tmp_path: Path) -> None:
    dpt = random_model(small_mast3r("dpt"))
    save_model(dpt, tmp_path / "own", "Apache-2.0")
    stored = load_file(tmp_path / "own" / "model.safetensors")
    first, second = (f"downstream_head1.dpt.scratch.{n}.weight" for n in ("layer1_rn", "layer_rn.0"))
    assert first in stored
    assert second not in stored
    assert same_weights(dpt, load_checkpoint(tmp_path / "own").model)
    stored[second] = stored.pop(first)
    save_file(stored, tmp_path / "own" / "model.safetensors")
    assert same_weights(dpt, load_checkpoint(tmp_path / "own").model)
    stored[first] = stored[second] + 1
    save_file(stored, tmp_path / "own" / "model.safetensors")
    with pytest.raises(CheckpointDamaged, match="one weight but differ"):
        load_checkpoint(tmp_path / "own")


def test_cosine_tables_are_in_the_state_dict_and_checked(tmp_path: Path) -> None:
    cosine = random_model(small_mast3r("linear", pos_embed="cosine", img_size=[64, 64]))
    cosine.load_state_dict(cosine.cosine_tables(), strict=False)
    save_model(cosine, tmp_path / "good", "Apache-2.0")
    assert same_weights(cosine, load_checkpoint(tmp_path / "good").model)
    cosine.enc_pos_embed += 0.5
    save_model(cosine, tmp_path / "bad", "Apache-2.0")
    with pytest.raises(CheckpointDamaged, match="enc_pos_embed"):
        load_checkpoint(tmp_path / "bad")


def test_writing_never_overwrites(tmp_path: Path, model) -> None:
    save_model(model, tmp_path / "a", "Apache-2.0")
    with pytest.raises(FileExistsError):
        save_model(model, tmp_path / "a", "Apache-2.0")


def test_half_refuses_what_does_not_fit(tmp_path: Path, model) -> None:
    large = random_model(TINY)
    large.enc_norm.weight.data[0] = 1e6
    with pytest.raises(CheckpointError, match="half precision"):
        save_model(large, tmp_path / "a", "Apache-2.0", half=True)


def broken(model: torch.nn.Module, change: str) -> dict[str, torch.Tensor]:
    state = dict(model.state_dict())
    if change == "missing":
        del state["enc_norm.weight"]
    elif change == "extra":
        state["enc_norm.scale"] = torch.zeros(3)
    elif change == "shape":
        state["enc_norm.weight"] = torch.zeros(17)
    elif change == "integer":
        state["enc_norm.weight"] = torch.zeros(16, dtype=torch.int64)
    elif change == "nan":
        state["enc_norm.weight"] = torch.full((16,), float("nan"))
    return state


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ("missing", KeyMismatch, "1 missing .first: enc_norm.weight"),
        ("extra", KeyMismatch, "1 extra .first: enc_norm.scale"),
        ("shape", ShapeMismatch, r"enc_norm.weight has shape \(17,\), the network wants \(16,\)"),
        ("integer", ShapeMismatch, "enc_norm.weight"),
        ("nan", CheckpointDamaged, "NaN"),
    ],
)
def test_each_misfit_is_its_own_error(
    tmp_path: Path, model, change: str, error: type[CheckpointError], says: str
) -> None:
    state = broken(model, change)
    torch.save({"args": argparse.Namespace(model=CALL), "model": state}, tmp_path / "a.pth")
    with pytest.raises(error, match=says):
        load_checkpoint(tmp_path / "a.pth")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY.to_mapping()))
    save_file(state, folder / "model.safetensors")
    with pytest.raises(error, match=says):
        load_checkpoint(folder)


def test_content_that_is_no_checkpoint(tmp_path: Path) -> None:
    torch.save({"weights": {}}, tmp_path / "a.pth")
    with pytest.raises(UnknownArchitecture, match="args"):
        load_checkpoint(tmp_path / "a.pth")
    torch.save({"args": argparse.Namespace(model="open('x')"), "model": {}}, tmp_path / "b.pth")
    with pytest.raises(UnknownArchitecture, match=r"b\.pth"):
        load_checkpoint(tmp_path / "b.pth")
    (tmp_path / "c.pth").write_bytes(b"")
    with pytest.raises(CheckpointDamaged, match="truncated"):
        load_checkpoint(tmp_path / "c.pth")
    torch.save({"a": 1}, tmp_path / "d.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointDamaged, match=r"1\.6"):
        load_checkpoint(tmp_path / "d.pth")


def test_no_such_path_and_no_such_name(tmp_path: Path) -> None:
    for source in ("nothing.pth", str(tmp_path / "no" / "such" / "folder"), "plainword"):
        with pytest.raises(CheckpointNotFound, match="owner/name"):
            fetch_weights(source)
    with pytest.raises(CheckpointNotFound, match=r"found 0; put the weights there, beside their config\.json"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointNotFound, match=r"config\.json"):
        load_checkpoint(tmp_path)
    (tmp_path / "other.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointNotFound, match="found 2; give the path of one of them"):
        load_checkpoint(tmp_path)


def hub_error(name: str) -> Exception:
    kind = getattr(hub_utils, name)
    error = kind.__new__(kind)  # constructors differ between versions of the client
    Exception.__init__(error, "from the test")
    return error


@pytest.mark.parametrize(
    ("raised", "error", "says"),
    [
        ("LocalEntryNotFoundError", CheckpointUnavailable, "weights fetch a/b"),
        ("RepositoryNotFoundError", CheckpointNotFound, "no such repository"),
        ("EntryNotFoundError", CheckpointNotFound, "has no config.json"),
        ("", CheckpointUnavailable, "ConnectionError"),
    ],
)
def test_hub_failures(monkeypatch: pytest.MonkeyPatch, raised: str, error: type[CheckpointError], says: str) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise hub_error(raised) if raised else ConnectionError("no route")

    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(error, match=says):
        load_checkpoint("a/b")
    monkeypatch.setattr(hub, "get_hf_file_metadata", fail)
    monkeypatch.setattr(hub, "hf_hub_download", None)  # not even tried: it would wait half a minute
    with pytest.raises(error, match=says):
        load_checkpoint("a/b")


def test_hub_name_loads_what_the_hub_client_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model) -> None:
    save_model(model, tmp_path / "snapshot", "Apache-2.0")
    asked = []

    def download(repository: str, name: str, cache_dir: Path | None) -> str:
        asked.append((repository, name))
        return str(tmp_path / "snapshot" / name)

    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(hub, "hf_hub_download", download)
    assert same_weights(model, load_checkpoint("a/b", tmp_path / "cache").model)
    assert asked == [("a/b", "config.json"), ("a/b", "model.safetensors")]


def hub_cache(folder: Path, model: torch.nn.Module) -> Path:
    """The hub's cache with a network as others publish it, without a checksum of ours; its blobs."""
    plain = folder / "plain"
    plain.mkdir()
    (plain / "config.json").write_text(json.dumps(TINY.to_mapping()))
    save_file(model.state_dict(), plain / "model.safetensors")
    repository = folder / "cache" / "models--a--b"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / ("0" * 40)
    for made in (blobs, snapshot, repository / "refs"):
        made.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    for name, digest in (("config.json", git_sha1), ("model.safetensors", sha256)):
        data = (plain / name).read_bytes()
        (blobs / digest(data)).write_bytes(data)
        (snapshot / name).symlink_to(blobs / digest(data))
    return blobs


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_what_the_hub_cached_is_used_without_asking_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model
) -> None:
    """One flipped bit of any file is noticed: the cache names files by their content."""
    blobs = hub_cache(tmp_path, model)
    monkeypatch.setattr(hub, "get_hf_file_metadata", None)
    monkeypatch.setattr(hub, "hf_hub_download", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UncheckedWeights)
        loaded = load_checkpoint("a/b", tmp_path / "cache")
    assert same_weights(model, loaded.model)
    assert loaded.info.checksum == "sha256"
    with pytest.warns(UncheckedWeights, match="without a checksum"):
        assert load_checkpoint(tmp_path / "plain").info.checksum == "none"
    for blob in blobs.iterdir():
        whole = blob.read_bytes()
        for seed in range(5):
            blob.write_bytes(flipped(whole, np.random.default_rng(seed), 0, len(whole)))
            with pytest.raises(CheckpointDamaged, match=f"delete .*{blob.name}"):
                load_checkpoint("a/b", tmp_path / "cache")
        blob.write_bytes(whole)
    assert same_weights(model, load_checkpoint("a/b", tmp_path / "cache").model)


def test_half_a_cached_repository_is_fetched_again_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model
) -> None:
    hub_cache(tmp_path, model)
    (tmp_path / "cache/models--a--b/snapshots" / ("0" * 40) / "model.safetensors").unlink()
    asked = []
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url, timeout: asked.append(url))
    plain = tmp_path / "plain"
    monkeypatch.setattr(hub, "hf_hub_download", lambda repository, name, cache_dir: str(plain / name))
    assert same_weights(model, load_checkpoint("a/b", tmp_path / "cache").model)
    assert [url.rsplit("/", 1)[1] for url in asked] == ["config.json", "model.safetensors"]


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model) -> None:
    def fail(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", fail)
    with pytest.raises(OutputError, match="No space left"):
        save_model(model, tmp_path / "full", "Apache-2.0")
    assert list((tmp_path / "full").iterdir()) == []


def test_the_command_fetches_describes_and_converts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, model
) -> None:
    monkeypatch.setattr(checkpoint_module, "_announced", set())
    path = str(write_pth(model, tmp_path / "a.pth"))
    assert main(["weights", "info", path]) == 0
    told = capsys.readouterr().out
    assert "AsymmetricCroCo3DStereo, linear head, no descriptors, encoder 1x16, decoders 2x16, 64x64 px" in told
    assert "CC BY-NC-SA 4.0" in told
    assert main(["weights", "convert", path, "--out", str(tmp_path / "b"), "--half"]) == 0
    assert "float16" in capsys.readouterr().out
    assert main(["weights", "fetch", str(tmp_path / "b")]) == 0
    assert main(["weights", "convert", path, "--out", str(tmp_path / "b")]) == 2
    assert "already there; choose another folder with --out" in capsys.readouterr().err
    assert main(["weights", "convert", path]) == 2

    def fail(*arguments: object, **options: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "get_hf_file_metadata", fail)
    assert main(["weights", "fetch", "nobody/nothing"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert "the hub cannot be reached" in told[1]


def test_licence_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model) -> None:
    monkeypatch.setattr(checkpoint_module, "_announced", set())
    path = write_pth(model, tmp_path / "a.pth")
    save_model(model, tmp_path / "ours", "Apache-2.0")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_checkpoint(tmp_path / "ours")
        assert not [w for w in caught if w.category is LicenceNotice]
        load_checkpoint(path)
        load_checkpoint(path)
    told = [str(w.message) for w in caught if w.category is LicenceNotice]
    assert len(told) == 1
    assert "CC BY-NC-SA" in told[0]
    assert describe_weights(tmp_path / "ours").licence == "Apache-2.0"


class Runs:
    """Pickles into a call that writes a file."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


def payloads(canary: Path) -> list[object]:
    """Objects that would write `canary` if unpickling called what they name."""
    command = f"touch {canary}"
    namespace = argparse.Namespace(model=CALL, extra=Runs(os.system, command))
    return [
        Runs(os.system, command),
        Runs(eval, f"open({str(canary)!r}, 'w')"),
        Runs(exec, f"open({str(canary)!r}, 'w')"),
        Runs(open, str(canary), "w"),
        Runs(os.mkdir, str(canary)),
        Runs(getattr, str(canary), "join"),
        {"args": namespace, "model": {}},
        {"args": Runs(os.system, command), "model": {}},
        {"args": argparse.Namespace(model=CALL), "model": {"a": Runs(os.system, command)}},
        {"args": argparse.Namespace(model=Runs(eval, f"open({str(canary)!r}, 'w')")), "model": {}},
        Runs(np.load, str(canary)),
        Runs(torch.load, str(canary)),
    ]


def with_pickle(path: Path, source: Path, data: bytes) -> Path:
    """`source` with its pickle replaced, checksums right."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, data if entry.endswith("data.pkl") else old.read(entry))
    return path


def test_code_in_a_pickle_is_refused_and_never_run(tmp_path: Path, model) -> None:
    canary = tmp_path / "canary"
    good = write_pth(model, tmp_path / "good.pth")
    for n, payload in enumerate(payloads(canary)):
        for protocol in (2, 4):
            data = pickle.dumps(payload, protocol)
            with pytest.raises(CheckpointError) as caught:
                load_checkpoint(with_pickle(tmp_path / f"{n}.pth", good, data))
            assert isinstance(caught.value, (UnsafeCheckpoint, CheckpointDamaged)), n
            assert not canary.exists(), n


def test_the_canary_would_be_seen(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(payloads(canary)[0]))
    assert canary.exists()


def flipped(data: bytes, rng: np.random.Generator, start: int, stop: int) -> bytes:
    """`data` with one to four random bits changed between two offsets."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        changed[int(rng.integers(start, stop))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def renamed(model: torch.nn.Module, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """The state dict with one key changed."""
    state = dict(model.state_dict())
    name = sorted(state)[int(rng.integers(len(state)))]
    letter = int(rng.integers(len(name)))
    state[name[:letter] + chr(97 + int(rng.integers(26))) + "_" + name[letter + 1 :]] = state.pop(name)
    return state


def mutate(tmp_path: Path, n: int, model: torch.nn.Module, originals: tuple[Path, Path]) -> Path:
    """The n-th damaged checkpoint: a .pth for even rounds, a folder for odd ones."""
    rng = np.random.default_rng(n)
    pth, folder = originals
    kind = ("truncate", "flip", "header", "rename", "pickle")[n // 2 % 5]
    if n % 2 == 0 or kind == "pickle":
        target = tmp_path / f"{n}.pth"
        data = pth.read_bytes()
        if kind == "pickle":
            payload = payloads(tmp_path / "canary")
            return with_pickle(target, pth, pickle.dumps(payload[n % len(payload)], 2))
        if kind == "rename":
            torch.save({"args": argparse.Namespace(model=CALL), "model": renamed(model, rng)}, target)
            return target
        tail = len(data) - 12000  # the zip's directory
        cut = {"truncate": data[: int(rng.integers(len(data)))]}
        start = tail if kind == "header" else 0
        target.write_bytes(cut.get(kind) or flipped(data, rng, start, len(data)))
        return target
    target = tmp_path / str(n)
    target.mkdir()
    config, weights = ((folder / name).read_bytes() for name in ("config.json", "model.safetensors"))
    if kind == "truncate":
        weights = weights[: int(rng.integers(len(weights)))]
    elif kind == "flip":
        weights = flipped(weights, rng, 0, len(weights))
    elif kind == "header" and n % 4 == 1:
        config = flipped(config, rng, 0, len(config))
    elif kind == "header":
        weights = flipped(weights, rng, 0, 8 + int.from_bytes(weights[:8], "little"))
    else:
        save_file(renamed(model, rng), target / "renamed.safetensors")
        weights = (target / "renamed.safetensors").read_bytes()
        (target / "renamed.safetensors").unlink()
    (target / "config.json").write_bytes(config)
    (target / "model.safetensors").write_bytes(weights)
    return target


@pytest.mark.slow
def test_200_mutations_never_run_and_never_load_wrong(tmp_path: Path, model) -> None:
    pth = write_pth(model, tmp_path / "good.pth")
    save_model(model, tmp_path / "good", "Apache-2.0")
    refusals = []
    for n in range(200):
        path = mutate(tmp_path, n, model, (pth, tmp_path / "good"))
        try:
            loaded = load_checkpoint(path)
        except CheckpointError as error:
            refusals.append(str(error))
            continue
        assert same_weights(model, loaded.model), n
        assert loaded.info.architecture == TINY, n
    assert not (tmp_path / "canary").exists()
    assert all(str(tmp_path) in text for text in refusals), "every error names the file"
    assert len(refusals) >= 150


def test_reading_leaves_the_safe_list_as_it_was(tmp_path: Path, model) -> None:
    before = set(torch.serialization.get_safe_globals())
    load_checkpoint(write_pth(model, tmp_path / "a.pth"))
    assert set(torch.serialization.get_safe_globals()) == before
    buffer = io.BytesIO()
    torch.save(argparse.Namespace(a=1), buffer)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
