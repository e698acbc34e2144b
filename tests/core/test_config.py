from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from saerl_core.config import PRESETS, RunConfig, Section, build_config, content, load_config
from saerl_core.errors import ConfigError

MINIMAL: dict[str, Any] = {
    "data": {"path": "p.jsonl"},
    "features": {"model": "m", "sae": "s"},
    "policy": {"model": "m"},
}


def build(**sections: Any) -> RunConfig:
    tree = {name: {**MINIMAL.get(name, {}), **section} if isinstance(section, dict) else section
            for name, section in {**MINIMAL, **sections}.items()}
    return build_config(tree, Path())


@pytest.mark.parametrize(("sections", "complaint"), [
    ({"shedule": {}}, "unknown key 'shedule'; did you mean 'schedule'?"),
    ({"features": {"saee": "x"}}, "unknown key 'features.saee'; did you mean 'sae'?"),
    ({"data": {"columns": {"promt": "x"}}}, "unknown key 'data.columns.promt'; did you mean 'prompt'?"),
    ({"clusters": {"zzzzz": 1}}, "unknown key 'clusters.zzzzz'; known: dims, iterations"),
    ({"clusters": {"k": 1}}, "clusters.k = 1: Input should be greater than or equal to 2"),
    ({"schedule": {"batch_size": "many"}}, "schedule.batch_size = 'many'"),
    ({"schedule": {"batch_size": 2, "clusters_per_batch": 3}}, "schedule.clusters_per_batch (3) is larger than "
                                                                "schedule.batch_size (2)"),
    ({"clusters": {"k": "many"}}, "clusters.k = 'many': Input should be a valid integer, unable to parse string as an "
                                  "integer or Input should be 'auto'"),
    ({"clusters": {"mini_batch_steps": 5}}, "clusters.mini_batch_steps (5) moves the clusters of a previous manifest"),
    ({"schedule": {"clusters_per_batch": "some"}}, "schedule.clusters_per_batch = 'some'"),
    ({"schedule": {"min_difficulty": 0.9, "max_difficulty": 0.1}}, "schedule.min_difficulty (0.9) is larger than "
                                                                   "schedule.max_difficulty (0.1)"),
    ({"schedule": {"seed": -1}}, "schedule.seed = -1"),
    ({"schedule": {"stages": 4}}, "schedule.stages = 4 needs an order by difficulty, but schedule.order is 'random'"),
    ({"schedule": {"fading": 0.5}}, "schedule.fading = 0.5 needs an order by difficulty"),
    ({"coverage": {"budget": 10}}, "coverage.budget (10) is smaller than schedule.batch_size (32)"),
    ({"train": {"gpus": 3, "tensor_parallel": 2}}, "train.gpus (3) is not a multiple of train.tensor_parallel (2)"),
    ({"labels": {"source": "column"}}, "labels.source is 'column' but data.columns.pass_rate names none"),
    ({"labels": {"source": "level"}}, "labels.source is 'level' but data.columns.level names none"),
    ({"quality": {"method": "random"}}, "quality.method is 'random' but quality.drop_share is not set"),
    ({"features": {"encoder": "residual"}}, "features.encoder is 'residual', whose features all fire everywhere, but "
                                            "clusters.weights is 'idf'"),
    ({"features": {"encoder": "residual"}, "clusters": {"weights": "none"}, "hygiene": {"sae_similarity": 0.9}},
     "but hygiene.sae_similarity (0.9)"),
    ({"labels": {"source": "server"}}, "labels.source is 'server' but labels.server is not set"),
    ({"labels": {"server": {"url": "http://h/v1", "mdoel": "m"}}}, "unknown key 'labels.server.mdoel'; did you mean"),
    ({"labels": {"server": {"url": "h:1", "model": "m"}}}, "labels.server.url = 'h:1': expected http://HOST:PORT/v1"),
    ({"policy": {"verifier": "import:judge"}}, "policy.verifier = 'import:judge': expected `exact`, `math`, or"),
    ({"name": "../elsewhere"}, "name = '../elsewhere'"),
    ({"data": {"answer_pattern": "("}}, "is not a regular expression"),
    ({"data": {"answer_pattern": "abc"}}, "needs a group"),
])
def test_a_mistake_is_one_line_that_names_the_field(sections: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(**sections)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"features\.sae is missing"):
        build_config({**MINIMAL, "features": {"model": "m"}}, Path())


@pytest.mark.parametrize(("text", "complaint"), [
    ("data: [", "not valid YAML"), ("- a\n- b", "expected sections"), ("", "expected sections"),
    ("\xff", "unknown key|cannot be read|expected sections"),
])
def test_files_that_are_no_config_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_config(tmp_path / "c.yaml")


def test_a_missing_config_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="saerl init"):
        load_config(tmp_path / "none.yaml")


def test_overrides_reach_into_sections_and_keep_types(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(MINIMAL))
    config = load_config(tmp_path / "c.yaml", ("schedule.seed=7", "data.columns.prompt=problem", "schedule.steps=null"))
    assert (config.schedule.seed, config.data.columns.prompt, config.schedule.steps) == (7, "problem", None)


@pytest.mark.parametrize("override", ["schedule.seed", "=3", "name.x=1", "schedule.seed=[", "schedule.sed=1"])
def test_bad_overrides_are_refused(tmp_path: Path, override: str) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**MINIMAL, "name": "n"}))
    with pytest.raises(ConfigError):
        load_config(tmp_path / "c.yaml", (override,))


def test_relative_paths_refer_to_the_configs_folder(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(MINIMAL))
    config = load_config(tmp_path / "c.yaml")
    assert config.resolve(config.data.path) == tmp_path / "p.jsonl"
    assert config.root == tmp_path / "saerl-out"


def test_packaged_names_cannot_leave_the_package() -> None:
    with pytest.raises(ConfigError, match="names nothing that ships"):
        build().resolve("saerl:toy/../../../../etc/passwd")


def test_places_and_speed_are_no_part_of_what_is_cached() -> None:
    here = build(workspace="a", features={"device": "cpu", "shard_rows": 5})
    there = build(workspace="b", features={"model": "elsewhere", "tokens_per_batch": 99}, data={"path": "q.jsonl"},
                  clusters={"previous": "c"})
    assert content(here) == content(there)
    assert content(here) != content(build(features={"max_tokens": 5}))


def test_where_a_server_is_and_how_it_is_asked_changes_no_label_but_its_model_does() -> None:
    def labels(url: str, model: str, **speed: Any) -> dict[str, Any]:
        return content(build(labels={"source": "server", "server": {"url": url, "model": model, **speed}}).labels)

    here = labels("http://a/v1", "m")
    assert here == labels("https://b:8000", "m", api_key_env="KEY", concurrency=1, timeout_seconds=9, retries=0)
    assert here != labels("http://a/v1", "n")
    assert content(build(difficulty={"rewards": "runs/a"})) == content(build(difficulty={"rewards": "runs/b"}))


def test_every_field_has_a_docstring() -> None:
    def bare(section: type[Section]) -> list[str]:
        return [f"{section.__name__}.{name}" for name, field in section.model_fields.items()
                if not field.description and not (isinstance(field.annotation, type)
                                                  and issubclass(field.annotation, Section))]

    direct = Section.__subclasses__()
    sections = direct + [child for section in direct for child in section.__subclasses__()]
    assert [name for section in sections for name in bare(section)] == []


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("columns", [{}, {"level": None}, {"answer": "key"}, {"prompt": "prompt"}], ids=str)
def test_a_config_that_is_written_out_and_read_again_says_the_same(preset: str, columns: dict[str, Any]) -> None:
    config = build(data={"preset": preset, "columns": columns, "heldout": {"path": "h.jsonl", "preset": preset}})
    for unset in (False, True):
        again = build_config(config.model_dump(mode="json", exclude_unset=unset), Path())
        assert again == config
        assert content(again) == content(config)


def test_the_columns_that_are_read_are_in_the_cache_key_whatever_names_them() -> None:
    keys = [content(build(data={"preset": "math", "columns": columns}).data)
            for columns in ({}, {"level": None}, {"prompt": "prompt"})]
    assert keys[0] != keys[1] != keys[2] != keys[0]


def test_a_section_that_stands_twice_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "saerl.yaml"
    path.write_text(yaml.safe_dump(MINIMAL) + "schedule: {batch_size: 64}\nschedule: {steps: 10}\n")
    with pytest.raises(ConfigError, match=r"'schedule' stands twice in .*line"):
        load_config(path)
