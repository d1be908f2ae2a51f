"""What is computed when: resuming, changes, damage, kills, two processes; and the whole pipeline on a known scene."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import cheap_pipeline
import numpy as np
import pytest
from cheap_pipeline import (
    BatchingPredictor,
    CheapPredictor,
    DescribingPredictor,
    EncodingPredictor,
    computed,
    install,
    number,
    run,
    write_mask,
    write_set,
)
from PIL import Image

import sparse_ga.pipeline
from sparse_ga.api import make_job, reconstruct
from sparse_ga.config import make_config
from sparse_ga.errors import InputError
from sparse_ga.pipeline import Pipeline
from sparse_ga.products import Reconstruction
from sparse_ga.stages.job import STAGE_NAMES, STAGES
from sparse_ga.stages.pairwise import FeatureCache
from sparse_ga.status import dropped_pairs, removable, status
from sparse_ga.store import Store

ALL = {"ingest": 5, "pairs": 1, "forward": 10, "match": 10, "align3d": 1, "refine2d": 1, "triangulate": 1}
AFTER_MATCH = {"align3d": 1, "refine2d": 1, "triangulate": 1}


@pytest.fixture(autouse=True)
def cheap_geometry(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real" not in request.keywords:
        install(monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_set(tmp_path)


def content(reconstruction: Reconstruction | None) -> float:
    assert reconstruction is not None
    return number(reconstruction.points, reconstruction.world_from_cam, reconstruction.depthmaps.depth)


def cache_bytes(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.glob("*/*")) if path.is_file()}


def test_the_first_run_computes_everything_and_the_second_nothing(folder: Path):
    predictor = CheapPredictor()
    first = run(folder, predictor)
    assert computed(first) == ALL
    assert len(predictor.calls) == 10
    again = run(folder, predictor)
    assert computed(again) == {}
    assert len(predictor.calls) == 10
    assert content(again.reconstruction) == content(first.reconstruction)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"triangulate": {"min_angle_deg": 2.5}}, {"triangulate": 1}),
        ({"refine2d": {"loss_px": 2.0}}, {"refine2d": 1, "triangulate": 1}),
        ({"align3d": {"anchor_px": 4}}, AFTER_MATCH),
        ({"match": {"min_matches": 3}}, {"match": 10, **AFTER_MATCH}),
        ({"forward": {"cross_stride": 3}}, {"forward": 10, "match": 10, **AFTER_MATCH}),
        ({"pairs": {"graph": "window-1"}}, {"pairs": 1, **AFTER_MATCH}),
        ({"ingest": {"mask_threshold": 0.4}}, {"ingest": 5, **AFTER_MATCH, "pairs": 0}),
        ({"forward": {"device": "cuda", "memory_gb": 1.0}}, {}),
        ({"cache": {"budget_gb": 5.0}}, {}),
        ({"calibrate": {"max_focal": 5.0}}, {}),
        ({"forward": {"mask_mode": "fill"}}, {}),  # a setting of the network: it enters by a predictor's fingerprint
    ],
)
def test_a_changed_setting_recomputes_exactly_what_depends_on_it(folder: Path, change: dict, expected: dict):
    run(folder, CheapPredictor())
    got = computed(run(folder, CheapPredictor(), change))
    if "ingest" in change:  # the masks come out the same, so that nothing behind them changes
        assert got == {"ingest": 5}
    else:
        assert got == expected
    assert computed(run(folder, CheapPredictor(), change)) == {}
    assert computed(run(folder, CheapPredictor())) == {}


def test_another_predictor_recomputes_all_pairs(folder: Path):
    run(folder, CheapPredictor())
    predictor = CheapPredictor()
    predictor.fingerprint = "cheap 2"
    assert computed(run(folder, predictor)) == {"forward": 10, "match": 10, **AFTER_MATCH}


def test_a_changed_mask_recomputes_exactly_what_its_image_touches(folder: Path):
    first = run(folder, CheapPredictor())
    write_mask(folder, 2, shift=5)
    predictor = CheapPredictor()
    changed = run(folder, predictor)
    assert computed(changed) == {"ingest": 1, "forward": 4, "match": 4, **AFTER_MATCH}
    assert all("v2.png" in pair for pair in predictor.calls)
    assert content(changed.reconstruction) != content(first.reconstruction)
    write_mask(folder, 2)
    back = run(folder, CheapPredictor())
    assert computed(back) == {}
    assert content(back.reconstruction) == content(first.reconstruction)


def test_a_mask_written_anew_with_the_same_foreground_changes_nothing_behind_ingest(folder: Path):
    run(folder, CheapPredictor())
    write_mask(folder, 2, value=254)
    assert computed(run(folder, CheapPredictor())) == {"ingest": 1, "triangulate": 1}


def test_a_changed_photograph_recomputes_its_pairs_and_an_added_one_only_new_pairs(folder: Path):
    run(folder, CheapPredictor())
    path = folder / "images" / "v0.png"
    Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)
    assert computed(run(folder, CheapPredictor())) == {"ingest": 1, "forward": 4, "match": 4, **AFTER_MATCH}
    write_set(folder, 6)  # v0 as it was, and v5
    got = computed(run(folder, CheapPredictor()))
    assert got == {"ingest": 1, "pairs": 1, "forward": 5, "match": 5, **AFTER_MATCH}


@pytest.mark.parametrize("stage", ["ingest", "pairs", "forward", "match", "align3d", "refine2d", "triangulate"])
@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_artifact_of_any_stage_is_recomputed(folder: Path, stage: str, damage: str):
    clean = run(folder, CheapPredictor())
    before = cache_bytes(folder / "cache")
    path = sorted((folder / "cache" / stage).iterdir())[0]
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(data[:middle] if damage == "truncate" else data[:middle] + b"\x5a" + data[middle + 1 :])
    assert path.read_bytes() != data
    result = run(folder, CheapPredictor())
    assert computed(result) == {stage: 1}
    assert stage in result.damaged[0]
    assert content(result.reconstruction) == content(clean.reconstruction)
    assert cache_bytes(folder / "cache") == before


def test_from_and_until(folder: Path):
    predictor = CheapPredictor()
    part = run(folder, predictor, last="forward")
    assert computed(part) == {"ingest": 5, "pairs": 1, "forward": 10}
    assert part.reconstruction is None
    assert computed(run(folder, predictor, last="align3d")) == {"match": 10, "align3d": 1}
    assert computed(run(folder, predictor)) == {"refine2d": 1, "triangulate": 1}
    assert computed(run(folder, predictor, first="refine2d")) == {"refine2d": 1, "triangulate": 1}
    assert computed(run(folder, predictor, first="match", last="match")) == {"match": 10}
    assert computed(run(folder, predictor, first="ingest")) == ALL
    assert computed(run(folder, predictor, last="ingest")) == {}
    with pytest.raises(InputError, match="exchange --from and --until"):
        run(folder, predictor, first="match", last="forward")
    with pytest.raises(InputError, match="there is no stage 'x'"):
        run(folder, predictor, first="x")


def test_descriptors_are_matched_before_they_are_dropped(folder: Path):
    predictor = DescribingPredictor()
    first = run(folder, predictor)
    assert len(predictor.calls) == 10
    assert max(path.stat().st_size for path in (folder / "cache" / "forward").iterdir()) < 30000
    # other matching settings need descriptors again, and give what a run from scratch gives
    changed = run(folder, predictor, {"match": {"min_matches": 3}})
    assert computed(changed) == {"match": 10, **AFTER_MATCH}
    assert len(predictor.calls) == 20
    fresh = run(folder, DescribingPredictor(), {"match": {"min_matches": 3}}, cache=folder / "other")
    assert content(fresh.reconstruction) == content(changed.reconstruction) != content(first.reconstruction)


def test_until_forward_matches_descriptors_that_are_not_kept(folder: Path):
    predictor = DescribingPredictor()
    part = run(folder, predictor, last="forward")
    assert computed(part) == {"ingest": 5, "pairs": 1, "forward": 10, "match": 10}
    assert computed(run(folder, predictor)) == AFTER_MATCH
    assert len(predictor.calls) == 10


def test_kept_descriptors_serve_other_matching_settings(folder: Path):
    predictor = DescribingPredictor()
    keep = {"forward": {"keep_descriptors": True}}
    run(folder, predictor, keep)
    changed = run(folder, predictor, {**keep, "match": {"min_matches": 3}})
    assert len(predictor.calls) == 10
    fresh = run(folder, DescribingPredictor(), {**keep, "match": {"min_matches": 3}}, cache=folder / "other")
    assert content(fresh.reconstruction) == content(changed.reconstruction)


def test_an_encoder_sees_every_image_once_and_a_vote_gives_the_focal_length(folder: Path):
    predictor = EncodingPredictor()
    result = run(folder, predictor)
    assert computed(result) == {"encode": 5, "calibrate": 1, **ALL}
    assert predictor.encoded == [f"v{n}.png" for n in range(5)]
    assert predictor.votes == 1
    for view in result.views:
        assert view.intrinsics[0, 0] == pytest.approx(96, rel=0.003)  # 2 x 48, on a scale of half percents
        np.testing.assert_allclose(view.intrinsics[:2, 2], [23.5, 15.5])
    write_mask(folder, 2, shift=5)
    changed = EncodingPredictor()
    assert computed(run(folder, changed)) == {
        "ingest": 1,
        "encode": 1,
        "calibrate": 1,
        "forward": 4,
        "match": 4,
        **AFTER_MATCH,
    }
    assert changed.encoded == ["v2.png"]


def test_without_evidence_the_focal_length_comes_from_a_first_reconstruction(folder: Path):
    predictor = EncodingPredictor(sufficient=False)
    result = run(folder, predictor)
    assert computed(result) == {"encode": 5, "calibrate": 2, **ALL}
    assert len(predictor.calls) == 60  # from four guesses, once more from the best, then for good
    for view in result.views:
        assert view.intrinsics[0, 0] == pytest.approx(300, rel=0.003)  # what the cheap alignment says
    assert len(list((folder / "cache" / "forward").iterdir())) == 10
    assert computed(run(folder, predictor)) == {}


def test_batches_give_what_single_pairs_give(folder: Path):
    class Single(BatchingPredictor):
        def pairs_at_once(self, views_i, views_j) -> int:
            return 1

    many, single = BatchingPredictor(), Single()
    assert computed(run(folder, many, cache=folder / "many")) == {"encode": 5, **ALL}
    run(folder, single, cache=folder / "single")
    assert many.batches == [4, 4, 2]
    assert single.batches == []
    assert many.calls == single.calls
    assert cache_bytes(folder / "many") == cache_bytes(folder / "single")


@pytest.mark.parametrize("change", [{"match": {"min_matches": 3}}, {}])
def test_matching_again_takes_batches_too(folder: Path, change: dict):
    run(folder, BatchingPredictor())
    before = cache_bytes(folder / "cache")
    predictor = BatchingPredictor()
    got = run(folder, predictor, change, first=None if change else "match", last="match")
    assert computed(got) == {"match": 10}
    assert predictor.batches == [4, 4, 2]
    after = cache_bytes(folder / "cache")
    assert all(after[name] == data for name, data in before.items() if name.startswith("forward"))
    run(folder, BatchingPredictor(), change, cache=folder / "fresh")
    fresh = cache_bytes(folder / "fresh")
    assert {name for name in fresh if name.startswith("match")} <= set(after)
    assert all(after[name] == data for name, data in fresh.items() if name.startswith("match"))


def test_only_what_lacks_descriptors_is_predicted_again(folder: Path):
    keep = {"forward": {"keep_descriptors": True}}
    run(folder, BatchingPredictor(), keep)
    stored = sorted((folder / "cache" / "forward").iterdir())
    stored[0].unlink()
    predictor = BatchingPredictor()
    got = run(folder, predictor, {**keep, "match": {"min_matches": 3}}, last="match")
    assert computed(got) == {"forward": 1, "match": 10}
    assert predictor.batches == []
    assert len(predictor.calls) == 1


def test_an_error_in_the_background_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch):
    import sparse_ga.matching

    def fail(*arguments, **options):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(sparse_ga.matching, "match_prediction", fail)
    with pytest.raises(RuntimeError, match="out of luck"):
        run(folder, BatchingPredictor())


def test_given_intrinsics_need_no_calibration(folder: Path):
    predictor = EncodingPredictor()
    k = np.array([[150.0, 0, 24], [0, 150, 16], [0, 0, 1]])
    from_list = reconstruct(
        folder / "images", folder / "masks", cache=folder / "cache", predictor=predictor, intrinsics=[k] * 5
    )
    assert predictor.votes == 0
    by_name = reconstruct(
        folder / "images",
        folder / "masks",
        cache=folder / "cache",
        predictor=predictor,
        intrinsics={f"v{n}": k for n in range(5)},
    )
    assert len(predictor.calls) == 10
    assert content(by_name) == content(from_list)
    some = EncodingPredictor()
    reconstruct(folder / "images", folder / "masks", cache=folder / "some", predictor=some, intrinsics={"v0.png": k})
    assert some.votes == 0  # the other views are of the same size, so they have the same camera


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"intrinsics": [np.eye(3)] * 4}, "4 given for 5 images"),
        ({"intrinsics": {"x.png": np.eye(3)}}, "no image is called 'x.png'"),
        ({"intrinsics": [np.zeros((3, 3))] * 5}, "K must be"),
        ({"world_from_cam": [np.zeros((4, 4))] * 5}, "cam2w must be"),
        ({"predictor": "classicl"}, "predictor 'classicl' is unknown"),
        ({"config": {"match": {"min_match": 3}}}, "did you mean 'min_matches'"),
    ],
)
def test_reconstruct_says_what_is_wrong_with_its_arguments(folder: Path, arguments: dict, message: str):
    options = {"cache": folder / "cache", "predictor": CheapPredictor(), **arguments}
    with pytest.raises(ValueError, match=message):
        reconstruct(folder / "images", folder / "masks", **options)


def test_fewer_than_two_images_and_missing_masks_are_refused(folder: Path):
    with pytest.raises(InputError, match="at least two"):
        reconstruct(folder / "images" / "v0.png", folder / "masks", cache=folder / "c", predictor=CheapPredictor())
    (folder / "masks" / "v3.png").unlink()
    with pytest.raises(InputError, match=r"v3\.png: no mask"):
        run(folder, CheapPredictor())
    write_mask(folder, 3, value=0)
    with pytest.raises(InputError, match=r"masks/v3\.png: the mask of v3\.png is empty"):
        run(folder, CheapPredictor())


def test_an_object_that_is_not_in_every_label_mask_leaves_those_images_unregistered(folder: Path):
    for n in range(5):
        write_mask(folder, n, value=7 if n != 3 else 2)
    result = run(folder, CheapPredictor(), {"ingest": {"object_id": 7}})
    assert result.reconstruction.registered.tolist() == [True, True, True, False, True]
    assert result.reconstruction.reasons[3] == "object 7 is not in this image (the mask has labels 2)"
    assert len(result.pairs) == 6
    assert all(3 not in pair for pair in result.pairs)


def test_sharing_one_camera_or_not_reaches_the_alignment_only(folder: Path):
    run(folder, CheapPredictor())
    result = run(folder, CheapPredictor(), {"ingest": {"shared_intrinsics": False}})
    assert computed(result) == AFTER_MATCH
    assert [view.camera for view in result.views] == [f"v{n}.png" for n in range(5)]


def test_two_runs_give_the_same_bytes(folder: Path):
    run(folder, EncodingPredictor(), cache=folder / "a")
    run(folder, EncodingPredictor(), cache=folder / "b")
    assert cache_bytes(folder / "a") == cache_bytes(folder / "b")


def _run_slowly(folder: str, cache: str) -> None:
    class Slow(EncodingPredictor):
        def predict(self, view_i, view_j):
            time.sleep(0.003)
            return super().predict(view_i, view_j)

    run(Path(folder), Slow(), cache=Path(cache))


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_it_ends_with_the_same_bytes(folder: Path):
    run(folder, EncodingPredictor(), cache=folder / "whole")
    context = multiprocessing.get_context("fork")
    rng = np.random.default_rng(3)
    kills = 0
    for _ in range(100):
        process = context.Process(target=_run_slowly, args=(str(folder), str(folder / "killed")))
        process.start()
        process.join(float(rng.uniform(0.01, 0.06)))
        if process.exitcode is not None:
            assert process.exitcode == 0
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
    result = run(folder, EncodingPredictor(), cache=folder / "killed")
    assert kills >= 3
    assert not result.damaged
    assert cache_bytes(folder / "killed") == cache_bytes(folder / "whole")


def test_two_processes_share_a_cache(folder: Path):
    context = multiprocessing.get_context("fork")
    arguments = (str(folder), str(folder / "shared"))
    processes = [context.Process(target=_run_slowly, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    run(folder, EncodingPredictor(), cache=folder / "alone")
    assert cache_bytes(folder / "shared") == cache_bytes(folder / "alone")


def _job(folder: Path, config: dict | None = None, predictor: object | None = None):
    settings = make_config(config or {})
    return make_job(folder / "images", folder / "masks", predictor or EncodingPredictor(), settings)


def test_status_tells_done_stale_and_missing(folder: Path):
    store = Store(folder / "cache")
    before = {item.stage: item for item in status(_job(folder), store)}
    assert (before["ingest"].done, before["ingest"].total) == (0, 5)
    assert before["forward"].total is None
    run(folder, EncodingPredictor())
    after = {item.stage: item for item in status(_job(folder), store)}
    assert all(item.done == item.total and not item.stale for item in after.values())
    assert after["forward"].total == 10
    assert sum(item.size_bytes for item in after.values()) == sum(usage.size_bytes for usage in store.usage())
    changed = {item.stage: item for item in status(_job(folder, {"match": {"min_matches": 3}}), store)}
    assert changed["forward"].done == 10
    assert changed["match"].done == 0
    assert changed["match"].stale == ("match.min_matches 12 -> 3 (10)",)
    assert changed["align3d"].stale == ("matches changed (1)",)
    write_mask(folder, 2, shift=5)
    masked = {item.stage: item for item in status(_job(folder), store)}
    assert masked["ingest"].done == 4
    assert masked["ingest"].stale == ("source changed (1)",)
    assert masked["forward"].total is None


def test_dropped_pairs_are_listed_with_their_reason(folder: Path, monkeypatch: pytest.MonkeyPatch):
    import sparse_ga.matching
    from sparse_ga.products import VerifiedMatches

    def refuse(matches, view_i, view_j, config, **options):
        why = "too few matches" if "v4" in view_j.name else None
        return VerifiedMatches(matches, 0.5, "none", why)

    monkeypatch.setattr(sparse_ga.matching, "verify_matches", refuse)
    run(folder, CheapPredictor())
    listed = dropped_pairs(_job(folder, predictor=CheapPredictor()), Store(folder / "cache"))
    assert listed == [(f"v{n}.png | v4.png", "too few matches") for n in range(4)]


def test_clean_frees_what_is_no_longer_needed_and_nothing_is_computed_again(folder: Path):
    whole = run(folder, EncodingPredictor())
    store = Store(folder / "cache")
    run(folder, EncodingPredictor(), {"match": {"min_matches": 3}})  # leaves artifacts that are not of this job
    files = removable(_job(folder), store)
    assert {path.parent.name for path in files} == {"encode", "forward", "match"}
    assert len(files) == 5 + 10 + 10
    assert {path.parent.name for path in removable(_job(folder), store, keep=("match",))} == {"encode", "forward"}
    others = set(removable(_job(folder), store, stale=True)) - set(files)
    assert {path.parent.name for path in others} == {"match", "align3d", "refine2d", "triangulate"}
    for path in files:
        path.unlink()
    predictor = EncodingPredictor()
    again = run(folder, predictor)
    assert computed(again) == {}
    assert predictor.calls == []
    assert content(again.reconstruction) == content(whole.reconstruction)
    # asking for another alignment brings back what it needs
    more = run(folder, predictor, {"align3d": {"anchor_px": 4}})
    assert computed(more) == {"encode": 5, "forward": 10, "match": 10, **AFTER_MATCH}


def test_clean_leaves_what_may_serve_once_a_changed_mask_is_read(folder: Path):
    run(folder, EncodingPredictor(), last="match")
    write_mask(folder, 2, shift=5)
    job, store = _job(folder), Store(folder / "cache")
    assert {path.parent.name for path in removable(job, store, stale=True)} == {"ingest"}
    run(folder, EncodingPredictor(), last="calibrate")
    gone = [path.parent.name for path in removable(job, store, stale=True)]
    assert gone.count("forward") == gone.count("match") == 4
    assert gone.count("encode") == 1


def test_clean_leaves_a_search_for_focal_lengths_alone(folder: Path, monkeypatch: pytest.MonkeyPatch):
    import sparse_ga.alignment.refine2d

    def interrupted(*arguments):
        raise KeyboardInterrupt

    predictor = EncodingPredictor(sufficient=False)
    with monkeypatch.context() as patch:
        patch.setattr(sparse_ga.alignment.refine2d, "refine_views", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(folder, predictor)
    before = cache_bytes(folder / "cache")
    assert any(name.startswith("forward") for name in before)
    assert removable(_job(folder, predictor=predictor), Store(folder / "cache"), stale=True) == []


def test_files_that_another_process_removes_meanwhile_are_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch):
    import sparse_ga.status

    run(folder, EncodingPredictor())
    run(folder, EncodingPredictor(), {"match": {"min_matches": 3}})
    job, store = _job(folder, {"cache": {"budget_gb": 0.0}}), Store(folder / "cache")
    real = removable

    def racing(job, store, keep=(), stale=False):
        files = real(job, store, keep, stale)
        for path in files[:1]:
            path.unlink(missing_ok=True)
        return files

    monkeypatch.setattr(sparse_ga.status, "removable", racing)
    freed, over = sparse_ga.status.keep_within_budget(job, store)
    assert freed > 0
    assert over > 0

    def listed(self, stage):
        return [*sorted((store.root / stage).glob("*.safetensors")), store.root / stage / "gone.safetensors"]

    monkeypatch.setattr(Store, "entries", listed)
    assert {item.stage for item in status(job, store)} == set(STAGE_NAMES)


def test_what_reads_only_matches_brings_back_no_predictions(folder: Path):
    run(folder, CheapPredictor())
    for path in removable(_job(folder, predictor=CheapPredictor()), Store(folder / "cache"), keep=("match",)):
        path.unlink()
    predictor = CheapPredictor()
    assert computed(run(folder, predictor, {"triangulate": {"min_angle_deg": 2.5}})) == {"triangulate": 1}
    assert predictor.calls == []
    next((folder / "cache" / "match").iterdir()).unlink()
    again = run(folder, predictor, {"triangulate": {"min_angle_deg": 3.5}})
    assert computed(again) == {"forward": 1, "match": 1, "triangulate": 1}


def test_the_alignment_decides_whether_to_triangulate(folder: Path):
    def pipeline() -> Pipeline:
        return Pipeline(_job(folder, predictor=CheapPredictor()), Store(folder / "cache"))

    asked = []
    refused = pipeline().run(go_on=lambda result: bool(asked.append(result)))
    assert asked[0].alignment is refused.alignment is not None
    assert refused.reconstruction is None
    assert computed(refused) == {name: count for name, count in ALL.items() if name != "triangulate"}
    assert computed(pipeline().run(go_on=lambda result: True)) == {"triangulate": 1}


def test_a_disk_budget_removes_the_cheapest_and_keeps_the_result(folder: Path):
    whole = run(folder, EncodingPredictor(), cache=folder / "whole")
    tight = run(folder, EncodingPredictor(), {"cache": {"budget_gb": 1e-9}})
    assert content(tight.reconstruction) == content(whole.reconstruction)
    left = {usage.stage for usage in Store(folder / "cache").usage()}
    assert left == {"ingest", "pairs", "calibrate", "align3d", "refine2d", "triangulate"}
    assert computed(run(folder, EncodingPredictor(), {"cache": {"budget_gb": 1e-9}})) == {}
    roomy = run(folder, EncodingPredictor(), {"cache": {"budget_gb": 1.0}}, cache=folder / "whole")
    assert computed(roomy) == {}
    assert len(Store(folder / "whole").usage()) == 9


def test_a_disk_budget_is_kept_amid_a_stage_by_what_other_settings_left(folder: Path, monkeypatch: pytest.MonkeyPatch):
    earlier, predictor = CheapPredictor(), CheapPredictor()
    earlier.fingerprint = "cheap 0"
    run(folder, earlier)
    monkeypatch.setattr(sparse_ga.pipeline, "_TRIM_EVERY", 4)
    left = []

    def predict(view_i, view_j):
        left.append(len(list((folder / "cache" / "forward").iterdir())))
        return CheapPredictor.predict(predictor, view_i, view_j)

    monkeypatch.setattr(predictor, "predict", predict, raising=False)
    whole = run(folder, predictor, {"cache": {"budget_gb": 0.0}}, last="match")
    assert computed(whole) == {"forward": 10, "match": 10}
    assert left == [10, 11, 12, 13, 4, 5, 6, 7, 8, 9]
    assert computed(run(folder, CheapPredictor(), last="match")) == {}


def test_features_and_what_a_predictor_keeps_leave_memory_once_all_pairs_are_matched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    import sparse_ga.alignment.align3d

    caches, freed = [], []
    real = FeatureCache.__init__

    def noted(self, *arguments):
        real(self, *arguments)
        caches.append(self)

    def align_views(*arguments):
        assert caches
        assert not caches[-1]._recent
        assert freed
        return cheap_pipeline.align_views(*arguments)

    monkeypatch.setattr(FeatureCache, "__init__", noted)
    monkeypatch.setattr(sparse_ga.alignment.align3d, "align_views", align_views)
    predictor = EncodingPredictor()
    predictor.free_memory = lambda: freed.append(True)
    assert computed(run(folder, predictor)) == {"encode": 5, "calibrate": 1, **ALL}


def test_every_stage_has_a_name_a_version_known_inputs_and_existing_settings():
    config = make_config({})
    assert STAGE_NAMES == (
        "ingest",
        "pairs",
        "encode",
        "calibrate",
        "forward",
        "match",
        "align3d",
        "refine2d",
        "triangulate",
    )
    for position, stage in enumerate(STAGES):
        assert stage.version >= 1
        assert set(stage.inputs) <= set(STAGE_NAMES[:position])
        values = stage.config_values(config)
        assert all("." in name for name in values)
        assert "forward.device" not in values
    covered = {path.split(".")[0] for stage in STAGES for path in stage.config}
    assert covered == {"ingest", "pairs", "calibrate", "forward", "match", "align3d", "refine2d", "triangulate"}


def test_the_pipeline_knows_no_more_than_its_job(folder: Path):
    """A job of paths in another place but with the same content uses the same artifacts."""
    import shutil

    run(folder, CheapPredictor())
    shutil.copytree(folder / "images", folder / "moved" / "images")
    shutil.copytree(folder / "masks", folder / "moved" / "masks")
    assert computed(run(folder / "moved", CheapPredictor(), cache=folder / "cache")) == {}
    job = make_job(folder / "moved" / "images", None, CheapPredictor(), make_config({}))
    counts = Pipeline(job, Store(folder / "cache")).run().counts
    assert counts["forward"].computed == 10  # without masks everything is foreground
