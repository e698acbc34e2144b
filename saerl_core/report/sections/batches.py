"""The order of training: what decides it, as words and as pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from saerl_core.report import facts as say
from saerl_core.report.facts import part
from saerl_core.report.markup import percent, svg

if TYPE_CHECKING:
    from saerl_core.manifest import Curation


def section(header: Mapping[str, Any], curation: Curation) -> dict[str, Any]:
    """What `batches.html.jinja` prints."""
    from saerl_core.report.figures import batches as figures
    from saerl_core.report.figures.clusters import TELLING, cluster_colours

    schedule, k = curation.schedule, say.cluster_count(header, curation)
    shaded = say.batch_difficulty(curation) is not None
    sequence = figures.batch_sequence(schedule.batches, curation.cluster, curation.difficulty, schedule.epoch,
                                      cluster_colours(k))
    roll = figures.cluster_roll(schedule.batches, curation.cluster, curation.difficulty)
    overlap = part(header, "batches_overlap")
    caption = ("Slots of a batch are sorted by cluster: their order has no effect, since a batch is one update. "
               "Colours are those of the cluster cards.")
    if k > TELLING:
        caption += f" {k} colours cannot all be told apart: the next picture gives each cluster a row of its own."
    if header.get("epochs", 1) > 1:
        caption += " Dark lines: a new epoch."
    return {
        "words": _words(header, curation, shaded),
        "sequence": svg(sequence, "Clusters, predicted difficulty and mixture of each batch, in training order"),
        "caption": caption,
        "roll": svg(roll, "When each cluster gives prompts, and how hard they are"),
        "roll_words": "A row for each cluster, a column for each batch; empty where the cluster has no slot in the "
                      "batch. " + ("The lighter, the harder the prompts that it gives; the hardest clusters are on top."
                                   if shaded else "The lighter, the more slots it has there."),
        "overlap": svg(figures.overlap(overlap["ours"], overlap["shuffled"]),
                       "Mean cosine of the prompts of each batch, in this order and shuffled") if overlap else "",
        "overlap_words": say.overlap_words(header),
    }


def _words(header: Mapping[str, Any], curation: Curation, shaded: bool) -> str:
    """The schedule's parameters as sentences."""
    settings = part(header, "settings", "schedule")
    mean = f"{say.mixture(curation).mean():.1f}"
    words = "Batch k is step k of the training. "
    if "clusters_per_batch" not in settings:
        return words + f"A batch holds prompts of {mean} clusters on average."
    if (stages := settings.get("stages", 1)) > 1:
        first = "hardest" if settings.get("order") == "hard_first" else "easiest"
        words += f"The prompts are cut by difficulty into {stages} stages, the {first} first. "
    drawn = {None: "without regard to clusters", "all": "from every cluster in turn"}.get(
        settings["clusters_per_batch"], f"from {settings['clusters_per_batch']} clusters that take turns")
    if settings["clusters_per_batch"] is not None:
        drawn += (", each giving as many prompts as the others" if settings.get("share", "equal") == "equal"
                  else ", each giving in proportion to its size")
    words += f"A batch is drawn {drawn}"
    if tail := settings.get("tail_mix", 0):
        words += f", and exchanges {percent(tail, 0)} of its tail with the next batch"
    asked = settings["clusters_per_batch"]
    dry = isinstance(asked, int) and not tail and say.mixture(curation).mean() > asked
    words += (f"; it holds {mean} clusters on average"
              f"{', for a cluster that runs dry hands its place on' if dry else ''}. {_order(settings, shaded)}")
    if (epochs := header.get("epochs", 1)) > 1:
        words += f" {epochs} epochs, " + ("each drawn anew." if settings.get("reshuffle_epochs") else
                                          "the same batches in each.")
    return words


def _order(settings: Mapping[str, Any], shaded: bool) -> str:
    if not shaded or settings.get("order") == "random":
        return "The order within is random."
    fading = settings.get("fading", 0)
    whole = "The whole set" if settings["clusters_per_batch"] is None else "Each cluster"
    direction = "from hard to easy" if settings.get("order") == "hard_first" else "from easy to hard"
    blended = (f"; ranks are blended with {percent(fading, 0)} of chance, so that one end fades into the other"
               if fading else "")
    return f"{whole} goes {direction}{blended}."
