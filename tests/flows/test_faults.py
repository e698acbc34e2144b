"""What may go wrong in a night: kills, damaged files, a full disk, a server that goes away, a clock that jumps."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prefect.settings import get_current_settings

from benchmarks import faults
from flows.curate import Curated, curate
from saerl_core import artifact, locks
from saerl_core.config import RunConfig, load_config
from saerl_core.manifest import verify_manifest
from tasks import extract
from tasks.inputs import resolve_inputs
from tests.damage import cut, flip
from tests.flows.conftest import Run, make_config, write_config

MOMENTS = 6

STORED = {
    "prompt tables": "artifacts/prompts-*/prompts.parquet",
    "findings of hygiene": "artifacts/prompts-*/hygiene.json",
    "headers": "artifacts/*/artifact.json",
    "feature segments": "features/*/*.safetensors",
    "feature rows": "artifacts/features-*/rows.safetensors",
    "health": "artifacts/features-*/health.json",
    "cluster labels": "artifacts/clusters-*/labels.safetensors",
    "codebooks": "artifacts/clusters-*/clusters.safetensors",
    "cluster cards": "artifacts/clusters-*/cards.json",
    "labels": "artifacts/labels-*/*.parquet",
    "label stores": "labels/*/*.parquet",
    "likelihood stores": "likelihood/*/*.parquet",
    "likelihoods": "artifacts/likelihood-*/*.*",
    "difficulty": "artifacts/difficulty-*/*",
    "damaged copies": "artifacts/damaged-*/*",
    "quality": "artifacts/quality-*/*",
    "agreement stores": "agreement/*/*.parquet",
    "agreement": "artifacts/agreement-*/*",
    "suspicion": "artifacts/suspicion-*/*",
    "results": "results/*",
    "manifests": "manifests/*/*",
    "records": "published/*.json",
}
"""Every kind of file that a curation keeps, by where it lies in a workspace."""
NOT_OURS = {".in-use", ".lock", ".lock.next"}


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> tuple[RunConfig, Curated]:
    """A workspace of which every stage has something to keep."""
    folder = tmp_path_factory.mktemp("night")
    config = make_config(folder, rows=80, quality={"count": 40, "suspect_answers": 0.1},
                         difficulty={"method": "nll"})
    return config, curate(config)


def again(config: RunConfig, before: Curated) -> Curated:
    """Curate once more, as another process would: the manifest must be the same to the byte, and nothing be left."""
    artifact._hash_once.cache_clear()
    after = curate(config)
    assert after.id == before.id
    verify_manifest(after.manifest.path)
    assert not list(config.root.rglob(".tmp*"))
    return after


def test_the_list_of_what_is_stored_is_complete(night: tuple[RunConfig, Curated]) -> None:
    root = night[0].root
    known = {path for pattern in STORED.values() for path in root.glob(pattern)}
    every = {path for path in root.rglob("*") if path.is_file() and path.name not in NOT_OURS}
    assert every - known == set()
    assert [kind for kind, pattern in STORED.items() if not list(root.glob(pattern))] == []


@pytest.mark.parametrize(("kind", "damage"), [*((kind, flip) for kind in STORED), ("feature segments", cut),
                                               ("feature rows", cut), ("results", cut), ("manifests", cut)])
def test_damage_in_any_kind_of_file_is_mended_by_a_rerun(night: tuple[RunConfig, Curated], kind: str,
                                                         damage: Callable[[Path], None]) -> None:
    config, before = night
    for path in sorted(config.root.glob(STORED[kind])):
        damage(path)
    again(config, before)


def test_lost_cache_records_cost_time_and_nothing_else(night: tuple[RunConfig, Curated],
                                                       forward_passes: list[int]) -> None:
    config, before = night
    rng = random.Random(0)
    records = sorted((config.root / "results").iterdir())
    for path in rng.sample(records, len(records) // 2):
        path.unlink()
    assert again(config, before).prompts_read_by_model == 0
    shutil.rmtree(config.root / "results")
    assert again(config, before).prompts_read_by_model == 0
    assert forward_passes == []


def test_a_clock_that_jumps_changes_nothing(night: tuple[RunConfig, Curated], forward_passes: list[int]) -> None:
    config, before = night
    for moment in (1.0, 4e9):  # 1970, 2096
        for path in Path(config.base).rglob("*"):
            os.utime(path, (moment, moment))
        after = again(config, before)
        assert [entry.stage for entry in after.stages if not entry.cached] == ["fingerprint"]
    assert forward_passes == []


def test_a_clock_that_goes_back_in_mid_run_changes_nothing(night: tuple[RunConfig, Curated], tmp_path: Path,
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    hours, real = iter(range(10**6)), time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600 * (next(hours) % 5))
    config = make_config(tmp_path, rows=80, quality={"count": 40, "suspect_answers": 0.1},
                         difficulty={"method": "nll"})
    assert curate(config).id == night[1].id


@pytest.mark.parametrize("write", [1, 4, 9])
def test_a_disk_that_is_full_is_one_line_and_a_rerun_goes_on(saerl: Run, tmp_path: Path, write: int,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path, labels={"source": "none"})
    writes, real = iter(range(1, 10**6)), os.fsync

    def fsync(file: int) -> None:
        if next(writes) >= write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(file)

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", fsync)
        code, out, err = saerl("curate", config)
    assert (code, out, "Traceback" in err) == (2, "", False)
    assert "No space left on device" in err.splitlines()[-1]
    root = tmp_path / "saerl-out"
    assert not list(root.rglob(".tmp*"))
    assert not list(root.glob("manifests/*"))
    assert saerl("curate", config)[0] == 0


def test_a_disk_that_is_really_full_is_one_line_and_a_rerun_goes_on(saerl: Run, tmp_path: Path,
                                                                    small_disk: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_config(tmp_path, labels={"source": "none"})
    ballast = small_disk / "ballast"
    with monkeypatch.context() as filled_by_another:
        filled_by_another.setattr("saerl_core.disk.require", lambda *_: None)
        for kilobytes in (20, 150, 400):
            free = shutil.disk_usage(small_disk).free
            ballast.write_bytes(bytes(max(0, free - 1000 * kilobytes)))
            code, out, err = saerl("curate", config, "--set", f"workspace={small_disk}/out")
            assert (code, out, "Traceback" in err) == (2, "", False), err
            assert not list(small_disk.rglob(".tmp*"))
            assert not list(small_disk.glob("out/manifests/*"))
            ballast.unlink()
    assert saerl("curate", config, "--set", f"workspace={small_disk}/out")[0] == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True,
                          check=False) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip("a tmpfs cannot be mounted here (that takes root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def api() -> str:
    url = get_current_settings().api.url
    assert url is not None
    return url


def test_kills_at_random_moments_lose_at_most_the_shard_in_flight(tmp_path: Path) -> None:
    usual = faults.undisturbed(tmp_path / "0", api())
    moments = faults.moments(3 * len(usual.stages), list(usual.stages), random.Random(0))
    chosen = random.Random(1).sample([moment for moment in moments if not moment.ephemeral], MOMENTS)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda moment: faults.kill_curation(tmp_path, moment, usual, api()), chosen))
    assert [kill for kill in found if not kill.sound()] == []


def test_two_runs_in_one_workspace_at_once_give_one_manifest_and_read_nothing_twice(tmp_path: Path) -> None:
    case = faults.Case(tmp_path / "case", api())
    runs: list[subprocess.Popen[str]] = [case.start("curate", str(case.config)) for _ in range(2)]
    outputs = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], case.log.read_text()
    assert len({output.split('"id": ')[1].split(",")[0] for output in outputs}) == 1
    assert case.read() <= faults.ROWS + 80
    assert case.leftovers() == []


def test_a_run_outlasts_a_server_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    home = tmp_path / "server"
    with faults.server(home) as url:
        case = faults.Case(tmp_path / "case", url)
        run = case.start("curate", str(case.config))
        while "extract" not in case.stages_done() and run.poll() is None:
            time.sleep(0.05)
    with faults.server(home, int(url.split(":")[2].split("/")[0])):
        out, _ = run.communicate(timeout=300)
        assert run.returncode == 0, case.log.read_text()
        assert case.finish("curate", str(case.config))["id"] == json.loads(out)["id"]
    assert case.leftovers() == []
    assert case.orphans() == 0


def test_an_interrupt_is_one_line_and_leaves_nothing_behind(tmp_path: Path) -> None:
    case = faults.Case(tmp_path / "case", api())
    run = case.start("curate", str(case.config))
    while "read" not in case.stages_done() and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    run.communicate(timeout=60)
    assert run.returncode == 130
    assert "interrupted; the same command goes on" in case.log.read_text().splitlines()[-1]
    assert case.orphans() == 0


def test_an_interrupt_ends_a_run_that_waits_for_another(tmp_path: Path) -> None:
    case = faults.Case(tmp_path / "case", api())
    store = resolve_inputs(load_config(case.config)).store
    with locks.exclusive(store / extract.LOCK):
        run = case.start("curate", str(case.config))
        while "read" not in case.stages_done() and run.poll() is None:
            time.sleep(0.05)
        time.sleep(1)  # it waits now
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=60)
    assert run.returncode == 130
    assert case.read() == 0
    assert "interrupted; the same command goes on" in case.log.read_text().splitlines()[-1]
