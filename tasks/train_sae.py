"""Stage `train-sae`: the reader and a corpus → an SAE, its figures and its report, as one artifact."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from saerl_core import artifact, backbone, locations, locks, models, sae_registry, sources, sums
from saerl_core.artifact import ArtifactRef
from saerl_core.config import RunConfig, SaeTrainingConfig, SourceConfig, content
from saerl_core.device import choose_device
from saerl_core.errors import ConfigError
from saerl_core.extract import extraction_parameters
from saerl_core.hashing import hash_value
from saerl_core.models import ModelSpec
from saerl_core.report import sae_training as report
from saerl_core.sae_spec import SAE_FILES
from saerl_core.sae_training import corpus, figures, train
from saerl_core.sae_training.trainer import save_sae
from tasks.caching import stage
from tasks.limits import device_slot
from tasks.progress import Progress

CARD, CURVE, REPORT = "card.json", "curve.json", "report.html"
_MADE_BY = "saerl train-sae"
_LIBRARIES = ("sae-lens", "torch", "transformers")


class SaeInputs(BaseModel):
    """What an SAE is trained on: resolved places, content hashes, and the shapes that follow."""

    model_config = ConfigDict(frozen=True)

    model: Path
    model_name: str
    """The hub id, or the class of a model that is a folder: a path would tell the same model apart from itself"""
    model_hash: str
    d_model: int
    layers: int
    layer: int
    d_sae: int
    corpus: tuple[Path, ...]
    evaluations: dict[str, tuple[Path, ...]]
    """where the corpus is the run's own prompts: the sets whose prompts must not be read"""
    identity: str
    """Hash of all that decides what comes out."""


def training_config(config: RunConfig) -> SaeTrainingConfig:
    """The section that says how to train.

    Raises:
        ConfigError: the config has none.
    """
    if config.sae_training is None:
        raise ConfigError("sae_training is not set: add the section (`sae_training: {}` takes every default)")
    return config.sae_training


def choose_shape(config: RunConfig, model: ModelSpec) -> tuple[int, int]:
    """(layer, number of features) of the SAE.

    Raises:
        ConfigError: they do not fit the model, or k does not fit them.
    """
    training = training_config(config)
    asked = config.features.layer if training.layer is None else training.layer
    layer = model.layers // 2 if asked is None else asked
    if layer >= model.layers:
        raise ConfigError(f"sae_training.layer = {layer}: features.model has {model.layers} layers (0 to "
                          f"{model.layers - 1})")
    d_sae = training.d_sae or training.expansion * model.d_model
    if training.k >= d_sae:
        raise ConfigError(f"sae_training.k = {training.k} must be smaller than the number of features, {d_sae}")
    return layer, d_sae


def resolve_training(config: RunConfig) -> SaeInputs:
    """Find, check and hash what the training needs.

    Raises:
        SaerlError: something is missing, or the numbers do not fit the model.
    """
    training = training_config(config)
    model = models.fetch(config.features.model, Path(config.base))
    spec = models.read_spec(model)
    layer, d_sae = choose_shape(config, spec)
    base = Path(config.base)
    files = sources.find_files(corpus_source(config), base)
    sets = {} if training.corpus else config.data.evaluations()
    evaluations = {name: sources.find_files(source, base) for name, source in sets.items()}
    local = (locations.resolve(config.features.model, Path(config.base)) / "config.json").is_file()
    name = spec.architecture if local else config.features.model
    model_hash = models.model_hash(model)
    data = None if training.corpus else [content(config.data), content(config.hygiene),
                                         *map(sources.content_hash, evaluations.values())]
    decisive = [train.VERSION, name, model_hash, d_sae, content(training),
                extraction_parameters(config.features, layer), sources.content_hash(files), data]
    return SaeInputs(model=model, model_name=name, model_hash=model_hash, d_model=spec.d_model, layers=spec.layers,
                     layer=layer, d_sae=d_sae, corpus=files, evaluations=evaluations,
                     identity=hash_value(json.loads(json.dumps(decisive))))


def corpus_source(config: RunConfig) -> SourceConfig:
    """Where the text is that an SAE is trained on: a corpus of its own, or the run's prompts."""
    corpus = training_config(config).corpus
    return SourceConfig(path=corpus.path) if corpus else config.data


def choose_out(config: RunConfig) -> Path:
    """The folder for the SAE, after checking that nothing of yours lies there.

    Raises:
        ConfigError: the name is no folder, or something lies there that `saerl train-sae` did not make.
    """
    named = training_config(config).out
    field, name = ("sae_training.out", named) if named else ("features.sae", config.features.sae)
    if sae_registry.is_registered(name) or name.startswith(locations.PACKAGED_PREFIX):
        raise ConfigError(f"{field} = {name!r} is an SAE that exists; name a folder for the new one in "
                          "sae_training.out")
    out = config.resolve(name)
    if out.exists() and not (out.is_dir() and (_is_ours(out) or not any(out.iterdir()))):
        raise ConfigError(f"{field} = {name!r}: something lies there that `saerl train-sae` did not make; name another "
                          "folder in sae_training.out")
    return out


def _is_ours(folder: Path) -> bool:
    """By its card, or, where that is damaged, by the list of what was written with it."""
    try:
        return json.loads((folder / CARD).read_text(encoding="utf-8"))["made_by"] == _MADE_BY
    except (OSError, ValueError, KeyError, TypeError):
        return (folder / sums.NAME).is_file() and CARD.encode() in (folder / sums.NAME).read_bytes()


def checkpoints(config: RunConfig, inputs: SaeInputs) -> Path:
    """Where an unfinished training keeps its state."""
    return config.root / "sae-training" / inputs.identity[:16]


@stage("train-sae", train.VERSION, of=("identity",), run_name="train-sae · {steps} steps")
def train_sae(inputs: SaeInputs, config: RunConfig, identity: str, steps: int) -> ArtifactRef:
    """Train the SAE, or go on where the training stopped; measure it on documents that it has not seen."""
    with device_slot(choose_device(config.features.device)):
        return _train(inputs, config, identity)


def _train(inputs: SaeInputs, config: RunConfig, identity: str) -> ArtifactRef:
    training, features = training_config(config), config.features
    progress = Progress("train-sae", "steps")
    device = backbone.pick_device(features.device)
    dtype = backbone.pick_dtype(features.dtype, device)
    reader = backbone.load_backbone(inputs.model, inputs.layer, device, dtype,
                                    trust_remote_code=features.trust_remote_code)
    documents = corpus.tokenize(
        _read(inputs, config), reader.tokenizer, max_tokens=features.max_tokens, chat_template=features.chat_template,
        tokens=training.tokens, heldout_tokens=training.heldout_tokens, seed=training.seed,
        progress=lambda done, total: progress(done, total, "tokens of the corpus"))
    metadata = {"model_name": inputs.model_name, "model_sha256": inputs.model_hash, "hook_layer": inputs.layer,
                "hook_name": f"blocks.{inputs.layer}.hook_resid_post", "context_size": features.max_tokens,
                "prepend_bos": False}
    trained = train.train(reader, documents.train, training, features, d_sae=inputs.d_sae, metadata=metadata,
                          checkpoints=checkpoints(config, inputs), progress=progress)
    with artifact.staging(config.root / "artifacts") as staged:
        save_sae(trained.sae, staged)
        heldout = figures.measure(
            reader, lambda: figures.load_causal_lm(inputs.model, device, dtype,
                                                   trust_remote_code=features.trust_remote_code),
            inputs.layer, staged, documents.heldout, features,
            progress=lambda done, total: progress(done, total, "documents measured"))
        trained.sae.cfg.metadata.heldout_fvu = heldout["document_fvu"]  # what prompts are held against
        trained.sae.cfg.metadata.l0 = heldout["l0"]
        save_sae(trained.sae, staged)
        card = {
            "made_by": _MADE_BY, "architecture": training.architecture, "d_in": inputs.d_model, "d_sae": inputs.d_sae,
            "k": training.k, "layer": inputs.layer, "hook_name": metadata["hook_name"],
            "model": {"name": inputs.model_name, "sha256": inputs.model_hash, "layers": inputs.layers},
            "training": {**content(training), "steps": trained.steps, "tokens": trained.steps * training.batch_tokens,
                         "documents": len(documents.train),
                         "epochs": round(trained.documents_read / len(documents.train), 2)},
            "heldout": heldout,
            "versions": {name: version(name) for name in _LIBRARIES},
        }
        artifact.write_json(staged / CARD, card)
        artifact.write_json(staged / CURVE, trained.curve)
        (staged / REPORT).write_text(report.training_page(card, trained.curve), encoding="utf-8")
        return artifact.seal(staged, "sae", {"stage": "train-sae", "identity": identity})


def _read(inputs: SaeInputs, config: RunConfig) -> list[Any]:
    training = training_config(config)
    if training.corpus is not None:
        return corpus.read_corpus(inputs.corpus, training.corpus)
    return corpus.read_prompts(inputs.corpus, inputs.evaluations, config.data, config.hygiene)


def publish(made: ArtifactRef, out: Path) -> None:
    """Copy a trained SAE to the folder that `features.sae` names, in place of an older one."""
    names = (*SAE_FILES, CARD, CURVE, REPORT)
    with (locks.exclusive(out.parent / f".{out.name}.lock"), artifact.staging(out.parent) as staged,
          artifact.staging(out.parent) as older):
        for name in names:
            shutil.copyfile(made.path / name, staged / name)
        sums.write(staged)
        if all((out / name).is_file() and artifact.file_hash(out / name) == artifact.file_hash(staged / name)
               for name in (*names, sums.NAME)):
            return
        staged.chmod(0o755)
        if out.exists():
            out.rename(older / out.name)
        staged.rename(out)


def load_card(ref: ArtifactRef) -> dict[str, Any]:
    """What the training says of itself."""
    return json.loads((ref.path / CARD).read_text(encoding="utf-8"))
