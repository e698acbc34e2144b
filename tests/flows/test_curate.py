"""The curation flow on a real Prefect server, a real reader and a real SAE."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.curate import Curated, curate
from saerl_core import artifact
from saerl_core.config import RunConfig
from saerl_core.errors import ArtifactError, ConfigError, DataError
from saerl_core.manifest import read_manifest, verify_manifest
from tests.flows.conftest import make_config, toy_rows, write_rows

World = Callable[..., RunConfig]


@pytest.fixture
def first(curated_once: tuple[Path, Curated]) -> Curated:
    return curated_once[1]


@pytest.fixture
def again(curated_once: tuple[Path, Curated]) -> World:
    """Configs over the workspace that was curated before the test."""
    return partial(make_config, curated_once[0])


def ran(curated: Curated) -> set[str]:
    return {entry.stage for entry in curated.stages if not entry.cached} - {"fingerprint"}


def test_the_first_run_reads_each_prompt_and_each_damaged_copy_once(first: Curated) -> None:
    assert first.prompts_read_by_model == 160
    assert 50 <= first.damaged_copies_read <= 60


def test_a_second_run_with_nothing_changed_does_nothing_and_says_so(
        first: Curated, again: World, forward_passes: list[int]) -> None:
    second = curate(again())
    assert (ran(second), forward_passes, second.prompts_read_by_model) == (set(), [], 0)
    assert second.manifest == first.manifest


def test_a_new_schedule_seed_reuses_features_clusters_and_scores(
        first: Curated, again: World, forward_passes: list[int]) -> None:
    second = curate(again(schedule={"seed": 1}))
    assert ran(second) == {"manifest"}
    assert forward_passes == []
    assert second.id != first.id


def test_another_sae_is_read_through_again(first: Curated, again: World, forward_passes: list[int],
                                           make_sae: Callable[..., Path]) -> None:
    other = make_sae("topk", d_in=128, d_sae=256, hook="blocks.2.hook_resid_post")
    second = curate(again(features={"sae": str(other)}))
    assert second.prompts_read_by_model == first.prompts_read_by_model
    assert sum(forward_passes) == second.prompts_read_by_model + second.damaged_copies_read


def test_ten_new_prompts_cost_ten_prompts_of_extraction(world: World, forward_passes: list[int]) -> None:
    config = world(labels={"source": "none"}, quality={"method": "none"})
    curate(config)
    forward_passes.clear()
    rows, new = toy_rows(160), toy_rows(10, start=160)
    write_rows(Path(config.base) / "prompts.jsonl", new[:5] + rows + new[5:])
    second = curate(config)
    assert second.prompts_read_by_model == sum(forward_passes) == 10


def test_two_runs_from_the_same_inputs_in_two_places_give_the_same_bytes(first: Curated, world: World) -> None:
    second = curate(world())
    assert second.manifest.path.parent != first.manifest.path.parent
    assert second.id == first.id
    for file in sorted(second.manifest.path.iterdir()):
        assert file.read_bytes() == (first.manifest.path / file.name).read_bytes(), file.name


def test_every_prompt_read_is_kept_or_dropped_with_a_reason(again: World) -> None:
    folder = curate(again(schedule={"batch_size": 8, "steps": 5, "max_difficulty": 0.9})).manifest.path
    counts = read_manifest(folder)["prompts"]
    train, dropped = pl.read_parquet(folder / "train.parquet"), pl.read_parquet(folder / "dropped.parquet")
    assert counts["read"] == counts["kept"] + counts["dropped"] == 160
    ids = train["extra_info"].struct.field("id").to_list()
    assert (len(ids), len(dropped)) == (counts["kept"], counts["dropped"]) == (40, 120)
    assert {*ids, *dropped["id"]} == {row["id"] for row in toy_rows(160)}
    assert dropped["reason"].null_count() == 0
    assert sum(counts["dropped_by_reason"].values()) == counts["dropped"]


def test_the_training_file_has_verls_schema_in_batches(first: Curated) -> None:
    folder = first.manifest.path
    train = pl.read_parquet(folder / "train.parquet")
    assert train.columns == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    extra = train["extra_info"].struct.unnest()
    header = read_manifest(folder)
    assert extra["batch"].to_list() == [k for k in range(header["batches"]) for _ in range(8)]
    assert extra["index"].to_list() == list(range(train.height))
    by_id = {row["id"]: row for row in toy_rows(160)}
    for row in train.iter_rows(named=True):
        source = by_id[row["extra_info"]["id"]]
        assert row["prompt"] == [{"role": "user", "content": source["problem"]}]
        assert row["reward_model"] == {"style": "rule", "ground_truth": source["answer"]}


def test_a_deleted_artifact_is_made_again_and_only_that(first: Curated, again: World,
                                                        forward_passes: list[int]) -> None:
    root = first.manifest.path.parent.parent
    for folder in (root / "artifacts").glob("clusters-*"):
        shutil.rmtree(folder)
    second = curate(again())
    assert ran(second) == {"cluster"}
    assert forward_passes == []
    assert second.id == first.id


@pytest.mark.parametrize("kind", ["prompts", "features", "clusters", "labels", "difficulty", "quality"])
def test_a_flipped_byte_in_an_artifact_is_noticed_and_mended(first: Curated, again: World, kind: str) -> None:
    curate(again())
    folders = list((first.manifest.path.parent.parent / "artifacts").glob(f"{kind}-*"))
    for folder in folders:
        victim = max(folder.iterdir(), key=lambda file: file.stat().st_size)
        data = bytearray(victim.read_bytes())
        data[len(data) // 2] ^= 1
        victim.write_bytes(data)
    second = curate(again())
    assert second.id == first.id
    verify_manifest(second.manifest.path)
    assert any(intact(folder, folder.name.removeprefix(f"{kind}-")) for folder in folders)  # the one in use


def intact(folder: Path, sha256: str) -> bool:
    try:
        artifact.verify_folder(folder, sha256)
    except ArtifactError:
        return False
    return True


def test_a_deleted_segment_is_read_again_and_only_that(world: World, forward_passes: list[int]) -> None:
    config = world(labels={"source": "none"}, quality={"method": "none"})
    first = curate(config)
    forward_passes.clear()
    segments = sorted(first.inputs.store.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    segments[0].unlink()
    second = curate(config)
    assert 0 < sum(forward_passes) <= 64
    assert second.id == first.id


def test_verify_finds_any_changed_byte_in_any_file_of_a_manifest(first: Curated, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(first.manifest.path, tmp_path / first.id))
    verify_manifest(folder)
    for file in sorted(folder.iterdir()):
        original = file.read_bytes()
        for position in {0, 7, len(original) // 3, len(original) // 2, len(original) - 1}:
            changed = bytearray(original)
            changed[position] ^= 1
            file.write_bytes(changed)
            with pytest.raises(ArtifactError):
                verify_manifest(folder)
        file.write_bytes(original)
    verify_manifest(folder)


def test_the_workspace_holds_no_pickle_and_no_temporary_file(first: Curated) -> None:
    root = first.manifest.path.parent.parent
    files = [file for file in root.rglob("*") if file.is_file()]
    assert not [file for file in files if file.name.startswith(".tmp")]
    for file in files:
        if "results" in file.parts:
            assert b'"serializer":{"type":"json"' in file.read_bytes().replace(b" ", b""), file


def test_bad_data_ends_the_flow_with_our_error_and_leaves_nothing(world: World) -> None:
    config = world()
    rows: list[Any] = toy_rows(5)
    write_rows(Path(config.base) / "prompts.jsonl", [*rows, {**rows[0], "id": "x", "answer": ""}])
    with pytest.raises(DataError, match=r"line 6: answer is empty"):
        curate(config)
    assert not list(config.root.rglob("*.parquet"))


def test_what_hygiene_found_is_in_the_manifest_and_changes_with_the_evaluation_sets(world: World) -> None:
    config = world(labels={"source": "none"}, quality={"method": "none"}, data={
        "decontaminate": [{"path": "exam.jsonl", "preset": "saerl", "name": "exam"}]})
    rows = toy_rows(160)
    write_rows(Path(config.base) / "exam.jsonl", [rows[3], {**rows[7], "problem": rows[7]["problem"].upper()}])
    curated = curate(config)
    header = read_manifest(curated.manifest.path)
    (found,) = header["hygiene"]["contamination"]
    assert (found["set"], found["rows"], found["exact"], found["near"]) == ("exam", 2, 1, 1)
    assert [pair["id"] for pair in found["pairs"]] == [rows[3]["id"], rows[7]["id"]]
    assert header["prompts"]["dropped_by_reason"]["contaminated"] == 2
    assert len(header["inputs"]["decontaminate"]) == 1
    assert "1 prompts are in exam word for word, 1 nearly so" in header["notes"]
    write_rows(Path(config.base) / "exam.jsonl", rows[3:4])
    again = curate(config)
    assert read_manifest(again.manifest.path)["prompts"]["dropped_by_reason"]["contaminated"] == 1
    assert again.prompts_read_by_model == 1


def test_a_folder_is_curated_like_the_file_it_was_cut_from(first: Curated, world: World) -> None:
    config = world(data={"path": "parts"})
    rows = toy_rows(160)
    parts = Path(config.base) / "parts"
    parts.mkdir()
    write_rows(parts / "a.jsonl", rows[:90])
    write_rows(parts / "b.jsonl", rows[90:])
    second = curate(config)
    for name in ("train.parquet", "dropped.parquet", "scores.parquet"):
        assert (second.manifest.path / name).read_bytes() == (first.manifest.path / name).read_bytes(), name
    for number, part in enumerate(sorted(parts.iterdir())):
        part.rename(parts / f"{number}.jsonl")
    third = curate(config)
    assert (third.id, ran(third)) == (second.id, set())


def test_copies_in_sae_space_are_dropped_before_anything_is_clustered(world: World) -> None:
    config = world(labels={"source": "none"}, quality={"method": "none"},
                   hygiene={"near_duplicate_overlap": None, "sae_similarity": 0.9})
    rows = toy_rows(160)
    copy = {**rows[5], "id": "copy", "problem": rows[5]["problem"].replace(".", " .", 1)}
    write_rows(Path(config.base) / "prompts.jsonl", [*rows, copy])
    curated = curate(config)
    header = read_manifest(curated.manifest.path)
    assert "copy" in {pair["id"] for pair in header["hygiene"]["sae_near_duplicates"]["pairs"]}
    assert header["prompts"]["dropped_by_reason"]["near_duplicate"] == header["hygiene"]["sae_near_duplicates"]["total"]
    assert header["prompts"]["read"] == header["prompts"]["kept"] + header["prompts"]["dropped"] == 161


def test_overlap_is_reported_for_every_batch_beside_a_shuffled_order(first: Curated) -> None:
    header = read_manifest(first.manifest.path)
    for figures in header["batches_overlap"].values():
        assert len(figures) == header["batches"]
        assert all(0 < figure < 1 for figure in figures)
    assert set(header["batches_overlap"]) == {"ours", "shuffled"}


def test_clusters_of_a_previous_manifest_are_kept_with_their_numbers(first: Curated, again: World) -> None:
    config = again(clusters={"previous": str(first.manifest.path)})
    rows = toy_rows(200)
    write_rows(Path(config.base) / "prompts.jsonl", rows)
    second = curate(config)
    about = read_manifest(second.manifest.path)["clusters"]
    assert about["kept"]
    assert about["drift"]["share_divergence"] < 0.1
    before, after = (dict(pl.read_parquet(run.manifest.path / "scores.parquet", columns=["key", "cluster"]).rows())
                     for run in (first, second))
    assert all(after[key] == number for key, number in before.items())
    assert (second.manifest.path / "clusters.safetensors").read_bytes() == (
        first.manifest.path / "clusters.safetensors").read_bytes()
    assert "cluster" not in ran(curate(config))


def test_clusters_of_another_sae_are_refused(first: Curated, again: World, make_sae: Callable[..., Path]) -> None:
    other = make_sae("topk", d_in=128, d_sae=256, hook="blocks.2.hook_resid_post")
    with pytest.raises(ConfigError, match=r"clusters\.previous = .* features\.sae is not the SAE"):
        curate(again(features={"sae": str(other)}, clusters={"previous": str(first.manifest.path)}))


def test_a_coverage_budget_is_met_exactly_and_the_rest_has_its_reason(again: World) -> None:
    header = read_manifest(curate(again(coverage={"budget": 80})).manifest.path)
    dropped = header["prompts"]["dropped_by_reason"]
    assert header["prompts"]["kept"] == 80
    assert header["prompts"]["read"] == 80 + sum(dropped.values())
    assert dropped["not_selected"] > 40


def test_a_band_of_difficulty_does_nothing_where_difficulty_is_not_used(again: World) -> None:
    config = again(labels={"source": "none"}, schedule={"min_difficulty": 0.6, "batch_size": 8})
    header = read_manifest(curate(config).manifest.path)
    assert "too_easy" not in header["prompts"]["dropped_by_reason"]
    assert "min_difficulty" in header["notes"][-1]


def test_a_chosen_number_of_clusters_is_kept_with_its_curve(again: World) -> None:
    config = again(clusters={"k": "auto", "dims": 64}, labels={"source": "none"}, quality={"method": "none"})
    write_rows(Path(config.base) / "prompts.jsonl", toy_rows(400))
    about = read_manifest(curate(config).manifest.path)["clusters"]
    assert about["choice"]["k"] == len(about["sizes"])
    assert [entry["k"] for entry in about["choice"]["curve"]] == [8, 11]


def test_labels_can_come_from_a_column(world: World) -> None:
    config = world(labels={"source": "column"}, data={"columns": {
        "id": "id", "prompt": "problem", "answer": "answer", "pass_rate": "rate"}})
    rows = [{**row, "rate": 1 - row["level"] / 6} for row in toy_rows(160)]
    write_rows(Path(config.base) / "prompts.jsonl", rows)
    header = read_manifest(curate(config).manifest.path)
    assert header["labels"]["source"] == "column"
    assert header["difficulty"]["labels"] > 100
    assert header["difficulty"]["used"]
