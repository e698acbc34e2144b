"""Training an SAE: the stream of activations, resuming to the bit, figures against naive loops."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saerl_core import backbone
from saerl_core.backbone import Backbone
from saerl_core.config import CorpusConfig, FeaturesConfig, SaeTrainingConfig
from saerl_core.errors import DataError
from saerl_core.sae_training import activations, checkpoint, corpus, figures, train
from saerl_core.sae_training.activations import Place
from saerl_core.sae_training.trainer import save_sae
from tests.conftest import ROOT, TOY
from tests.flows.conftest import toy_rows

FEATURES = FeaturesConfig(model="x", sae="y", device="cpu")
SMALL: dict[str, Any] = {"tokens": 12_000, "batch_tokens": 256, "buffer_tokens": 2048, "k": 4, "learning_rate": 3e-3,
                         "save_every": 10, "heldout_tokens": 600}
METADATA = {"model_name": "toy", "hook_name": "blocks.2.hook_resid_post"}


class KilledError(Exception):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def reader() -> Backbone:
    return backbone.load_backbone(TOY / "lm", 2, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def documents(reader: Backbone) -> corpus.Documents:
    chats = [[{"role": "user", "content": row["problem"]}] for row in toy_rows(200)]
    return corpus.tokenize(chats, reader.tokenizer, max_tokens=64, chat_template=True, tokens=5000, heldout_tokens=600,
                           seed=0)


def run(reader: Backbone, documents: corpus.Documents, folder: Path, progress: Any = None,
        **changes: Any) -> train.Trained:
    return train.train(reader, documents.train, SaeTrainingConfig(**{**SMALL, **changes}), FEATURES, d_sae=64,
                       metadata=METADATA, checkpoints=folder, progress=progress)


def weights(trained: train.Trained) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained.sae.state_dict().items()}


@pytest.mark.parametrize("architecture", ["topk", "batchtopk", "jumprelu"])
def test_a_training_that_is_cut_off_anywhere_ends_with_the_same_weights(
        reader: Backbone, documents: corpus.Documents, tmp_path: Path, architecture: str) -> None:
    whole = run(reader, documents, tmp_path / "whole", architecture=architecture)

    def stop_at(cut: int) -> Callable[..., None]:
        def progress(done: int, total: int, note: str) -> None:
            if done == cut:
                raise KilledError
        return progress

    for cut in (10, 27, 45):  # behind a checkpoint, between two, and once more
        with pytest.raises(KilledError):
            run(reader, documents, tmp_path / "cut", stop_at(cut), architecture=architecture)
    resumed = run(reader, documents, tmp_path / "cut", architecture=architecture)
    assert (whole.resumed_from, resumed.resumed_from) == (0, 40)
    assert resumed.curve == whole.curve
    assert weights(resumed).keys() == weights(whole).keys()
    for name, value in weights(whole).items():
        assert torch.equal(weights(resumed)[name], value), name


def test_a_killed_process_leaves_a_checkpoint_from_which_another_goes_on(
        reader: Backbone, documents: corpus.Documents, tmp_path: Path) -> None:
    (tmp_path / "documents.json").write_text(json.dumps(documents.train))
    script = f"""
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads({torch.get_num_threads()})
from saerl_core import backbone
from saerl_core.sae_training.corpus import Documents
from tests.core.test_sae_training import TOY, run
folder = Path({str(tmp_path)!r})
reader = backbone.load_backbone(TOY / "lm", 2, torch.device("cpu"), torch.float32)
kill = lambda done, total, note: os.kill(os.getpid(), signal.SIGKILL) if done == 33 else None
run(reader, Documents(json.loads((folder / "documents.json").read_text()), []), folder / "cut", kill)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    resumed = run(reader, documents, tmp_path / "cut")
    assert resumed.resumed_from == 30
    whole = run(reader, documents, tmp_path / "whole")
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(whole).items())


def test_a_damaged_checkpoint_is_passed_over(reader: Backbone, documents: corpus.Documents, tmp_path: Path) -> None:
    whole = run(reader, documents, tmp_path)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    with (newest / "state.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert checkpoint.latest(tmp_path) is None
    again = run(reader, documents, tmp_path)
    assert again.resumed_from == 0
    assert all(torch.equal(weights(again)[name], value) for name, value in weights(whole).items())


def test_the_sae_learns_and_is_saved_as_sae_lens_reads_it(reader: Backbone, documents: corpus.Documents,
                                                          tmp_path: Path) -> None:
    from sae_lens import SAE

    trained = run(reader, documents, tmp_path / "work", tokens=40_000, k=8)
    explained = [point["explained_variance"] for point in trained.curve]
    assert explained[-1] > explained[0] + 0.2
    assert explained[-1] > 0.7
    assert all(point["l0"] <= 8 for point in trained.curve)
    assert trained.curve[-1]["learning_rate"] < 1e-4
    assert trained.documents_read > len(documents.train)  # several epochs
    save_sae(trained.sae, tmp_path / "sae")
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "sae").iterdir()} == {
        "cfg.json": 0o644, "sae_weights.safetensors": 0o644}
    loaded = SAE.load_from_disk(str(tmp_path / "sae"))
    assert loaded.cfg.metadata.hook_name == "blocks.2.hook_resid_post"
    h_ND = activations.read_documents(reader, documents.heldout, tokens_per_batch=512, sink_norm_ratio=10)
    found = figures.measure_reconstruction(loaded, [h_ND])
    assert found.explained_variance > 0.7
    assert found.l0 <= 8


def test_jumprelu_is_drawn_towards_the_wanted_number_of_features(reader: Backbone, documents: corpus.Documents,
                                                                 tmp_path: Path) -> None:
    trained = run(reader, documents, tmp_path, architecture="jumprelu", tokens=60_000, k=8)
    assert trained.curve[0]["l0"] > 20
    assert 2 < trained.curve[-1]["l0"] < 16


def test_the_speed_of_reading_changes_nothing_but_the_speed(reader: Backbone, documents: corpus.Documents) -> None:
    def batches(budget: int) -> list[torch.Tensor]:
        made = activations.stream(reader, documents.train, batch_tokens=256, buffer_tokens=2048, seed=1,
                                  tokens_per_batch=budget, sink_norm_ratio=10)
        return [batch for batch, _ in islice(made, 12)]

    for slow, fast in zip(batches(1), batches(100_000), strict=True):
        torch.testing.assert_close(slow, fast, atol=1e-3, rtol=1e-3)


def test_the_stream_goes_on_from_every_place(reader: Backbone, documents: corpus.Documents) -> None:
    def stream(place: Place) -> Any:
        return activations.stream(reader, documents.train, batch_tokens=256, buffer_tokens=1024, seed=1,
                                  tokens_per_batch=512, sink_norm_ratio=10, place=place)

    whole = list(islice(stream(Place()), 9))
    for number, (_, place) in enumerate(whole[:-1]):
        batch, following = next(stream(place))
        assert torch.equal(batch, whole[number + 1][0])
        assert following == whole[number + 1][1]


def test_a_batch_mixes_many_documents(reader: Backbone, documents: corpus.Documents,
                                      monkeypatch: pytest.MonkeyPatch) -> None:
    def numbered(_: Any, chosen: list[list[int]], **__: Any) -> torch.Tensor:
        return torch.cat([torch.full((len(ids), 1), float(number)) for number, ids in enumerate(chosen)])

    monkeypatch.setattr(activations, "read_documents", numbered)
    batch, _ = next(activations.stream(reader, documents.train, batch_tokens=256, buffer_tokens=2048, seed=1,
                                       tokens_per_batch=512, sink_norm_ratio=10))
    assert len(batch.unique()) > 40


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 40), st.integers(0, 30))
def test_every_epoch_reads_every_document_once(lengths: list[int], tokens: int, seed: int) -> None:
    documents = [[number] * length for number, length in enumerate(lengths)]
    read, place = [], 0
    while place < 3 * len(documents):
        chosen, following = activations._fill(documents, place, tokens, seed)
        assert following == place + len(chosen)
        assert sum(map(len, chosen)) >= tokens > sum(map(len, chosen[:-1]))
        read += [ids[0] for ids in chosen]
        place = following
    for epoch in range(3):
        part = read[epoch * len(documents) : (epoch + 1) * len(documents)]
        assert sorted(part) == list(range(len(documents)))


def test_a_mask_that_leaves_nothing_is_an_error_not_an_endless_loop(reader: Backbone) -> None:
    with pytest.raises(DataError, match=r"see features\.sink_norm_ratio"):
        next(activations.stream(reader, [[5, 6, 7, 8]], batch_tokens=64, buffer_tokens=128, seed=0,
                                tokens_per_batch=64, sink_norm_ratio=0.0))


def test_figures_equal_naive_ones_however_the_tokens_are_cut(make_sae: Callable[..., Path]) -> None:
    from sae_lens import SAE

    sae = SAE.load_from_disk(str(make_sae("topk")))
    h_ND = torch.randn(90, 32, generator=torch.Generator().manual_seed(0)) + 3
    with torch.no_grad():
        acts_NS, found_ND = sae.encode(h_ND), sae(h_ND)
    found = figures.measure_reconstruction(sae, h_ND.split(17))
    assert found.explained_variance == pytest.approx(
        1 - float(((h_ND - found_ND) ** 2).sum() / ((h_ND - h_ND.mean(0)) ** 2).sum()), rel=1e-5)
    assert found.l0 == pytest.approx(float((acts_NS > 0).sum() / 90))
    assert found.dead_share == pytest.approx(float((acts_NS.sum(0) == 0).float().mean()))
    assert found.tokens == 90


def test_loss_recovered_equals_a_naive_loop(reader: Backbone, documents: corpus.Documents) -> None:
    from sae_lens import SAE

    class Through(torch.nn.Module):
        """A layer whose output is put through `change`, token by token, but for sinks."""

        def __init__(self, layer: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
            super().__init__()
            self.layer, self.change = layer, change
            self.attention_type = getattr(layer, "attention_type", None)

        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            h_TD = self.layer(*args, **kwargs)[0]
            norms = h_TD.norm(dim=-1)
            rows = [row if norm > 1.5 * norms.median() else self.change(row[None])[0]
                    for row, norm in zip(h_TD, norms, strict=True)]
            return torch.stack(rows)[None]

    model = figures.load_causal_lm(TOY / "lm", torch.device("cpu"), torch.float32)
    sae = SAE.load_from_disk(str(TOY / "sae"))
    texts = documents.heldout[:6]
    found = figures.measure_cross_entropy(model, 2, sae, texts, tokens_per_batch=100, sink_norm_ratio=1.5, bos=None)

    def naive(change: Callable[[torch.Tensor], torch.Tensor] | None) -> float:
        layer = model.model.layers[2]
        if change is not None:
            model.model.layers[2] = Through(layer, change)
        total, count = 0.0, 0
        with torch.no_grad():
            for ids in texts:
                logp = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
                total -= sum(float(logp[i, token]) for i, token in enumerate(ids[1:]))
                count += len(ids) - 1
        model.model.layers[2] = layer
        assert count == found.tokens
        return total / count

    clean, spliced, ablated = naive(None), naive(lambda h: sae.decode(sae.encode(h))), naive(torch.zeros_like)
    assert (found.clean, found.spliced, found.ablated) == pytest.approx((clean, spliced, ablated), rel=1e-4)
    assert found.recovered == pytest.approx((ablated - spliced) / (ablated - clean), rel=1e-4)
    assert clean < spliced < ablated


def tokenize(reader: Backbone, documents: list[Any], **changes: Any) -> corpus.Documents:
    settings = {"max_tokens": 10, "chat_template": True, "tokens": 10**6, "heldout_tokens": 100, "seed": 0, **changes}
    return corpus.tokenize(documents, reader.tokenizer, **settings)


def test_held_out_documents_are_drawn_by_lot_and_never_trained_on(reader: Backbone) -> None:
    texts = [f"Tom has {number} coins and more." for number in range(200)]
    one, other = (tokenize(reader, given, max_tokens=50) for given in (texts * 2, texts[::-1]))
    assert one == other  # neither order nor repetition matters
    assert not {tuple(ids) for ids in one.heldout} & {tuple(ids) for ids in one.train}
    assert 100 <= sum(map(len, one.heldout)) < 130
    assert tokenize(reader, texts, seed=1).heldout != one.heldout
    assert sum(map(len, tokenize(reader, texts, heldout_tokens=10**6).heldout)) < 0.15 * sum(map(len, one.train))


def test_long_documents_are_cut_and_nothing_is_lost(reader: Backbone) -> None:
    texts = [f"{number} " * 30 for number in range(20)]
    found = tokenize(reader, texts)
    assert max(map(len, found.train + found.heldout)) <= 10
    whole = sum(len(reader.tokenizer.encode(text)) for text in texts)
    assert sum(map(len, found.train + found.heldout)) == whole


def test_no_more_of_a_corpus_is_read_than_is_trained_on(reader: Backbone) -> None:
    texts = [f"Tom has {number} coins and more." for number in range(200)]
    assert 500 <= sum(map(len, tokenize(reader, texts, tokens=500).train)) < 530


def test_a_corpus_of_text_columns_or_chats_is_read(write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl({"a": "one", "b": "two", "c": [{"role": "user", "content": "three"}]})
    assert corpus.read_corpus([path], CorpusConfig(path="", columns=("a", "b"))) == ["one\n\ntwo"]
    assert corpus.read_corpus([path], CorpusConfig(path="", columns=("a",), chat=True)) == [
        [{"role": "user", "content": "one"}]]
    assert corpus.read_corpus([path], CorpusConfig(path="", columns=("c",))) == [[{"role": "user", "content": "three"}]]


@pytest.mark.parametrize(("row", "complaint"), [
    ({"body": "x"}, r"line 1: no column 'text' \(sae_training\.corpus\.columns\); there are body"),
    ({"text": 3}, "line 1: text: expected text, found int"),
    ({"text": " "}, "line 1: text is empty"),
    ({"text": [{"role": "user"}]}, "line 1: text is a list, but not of chat messages"),
])
def test_a_bad_row_of_a_corpus_is_named(write_jsonl: Callable[..., Path], row: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        corpus.read_corpus([write_jsonl(row)], CorpusConfig(path=""))


def test_too_small_a_corpus_is_refused(reader: Backbone) -> None:
    with pytest.raises(DataError, match="3 different documents are too few"):
        tokenize(reader, ["a", "b", "c"])


def test_the_seed_decides(reader: Backbone, documents: corpus.Documents, tmp_path: Path) -> None:
    one, other = (run(reader, documents, tmp_path / str(seed), seed=seed, tokens=1024) for seed in (0, 1))
    assert not torch.equal(weights(one)["W_enc"], weights(other)["W_enc"])
    assert np.isfinite([point["loss"] for point in one.curve]).all()
