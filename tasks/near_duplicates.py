"""Stage `near duplicates`: prompts marked whose features all but equal those of an earlier one. Off by default."""

from __future__ import annotations

from pathlib import Path

from saerl_core import hygiene
from saerl_core.artifact import ArtifactRef
from saerl_core.config import HygieneConfig
from tasks.caching import stage
from tasks.extract import load_rows
from tasks.read import load_findings, load_table, seal_table


@stage("near duplicates", hygiene.VERSION)
def near_duplicates(root: Path, table: ArtifactRef, features: ArtifactRef, config: HygieneConfig) -> ArtifactRef:
    """The prompt table again, with fewer usable prompts."""
    marked, findings = hygiene.mark_alike_in_sae_space(load_table(table), load_rows(features), config,
                                                       load_findings(table))
    return seal_table(root, "near duplicates", marked, findings)
