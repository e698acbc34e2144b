from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from flows import fields
from saerl_core.config import ScheduleConfig, build_config
from saerl_core.errors import ConfigError
from tests.flows.conftest import Run


def test_every_field_is_explained() -> None:
    found = fields.fields()
    assert len({field.name for field in found}) == len(found) > 100
    assert [field.name for field in found if not field.about] == []


def test_a_section_shows_its_own_fields_with_the_defaults_that_it_has() -> None:
    found = {field.name: field.default for field in fields.fields("schedule")}
    assert set(found) == {f"schedule.{name}" for name in ScheduleConfig.model_fields}
    for name, default in found.items():
        value = getattr(ScheduleConfig(), name.partition(".")[2])
        assert yaml.safe_load(default) == value


def test_an_optional_section_is_shown_as_a_whole_and_field_by_field() -> None:
    names = [field.name for field in fields.fields("labels.server")]
    assert names[:3] == ["labels.server", "labels.server.url", "labels.server.model"]
    assert fields.fields("data.path")[0].default == "required"


def test_an_unknown_section_is_told_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"no section or field 'schedul' in a config; sections: .*schedule"):
        fields.fields("schedul")


def test_the_command_prints_to_stdout(saerl: Run) -> None:
    code, out, _ = saerl("fields", "schedule", "--json")
    assert (code, json.loads(out)["schedule.batch_size"]["default"]) == (0, "32")
    code, out, _ = saerl("fields", "clusters")
    assert (code, "clusters.k" in out) == (0, True)
    assert saerl("fields", "schedul")[0] == 2


def test_the_required_fields_are_enough_for_a_config(tmp_path: Any) -> None:
    tree: dict[str, Any] = {}
    for field in fields.fields():
        if field.default == "required" and not field.name.startswith(("labels.server", "data.heldout", "sae_training")):
            section, _, name = field.name.partition(".")
            tree.setdefault(section, {})[name] = "saerl:toy/lm"
    build_config(tree, base=tmp_path)
