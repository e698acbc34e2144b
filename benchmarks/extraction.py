"""Extraction beside its bound and beside other routes, in tokens per CPU-second, all sides in turn in one run.

A ratio is the median over the rounds, with its 95% bootstrap interval: on a shared machine single rounds differ by a
third.

    python -m benchmarks.extraction                      two CPU cores: 12-layer Qwen2 of width 512, layer 6, SAE of 8k
    python -m benchmarks.extraction --device cuda        a GPU: Qwen2.5-Math-1.5B's shape, middle layer, bf16, k = 64
    python -m benchmarks.extraction --template           with a system message before every prompt
    python -m benchmarks.extraction --shape tiny         the same code in seconds; its figures mean nothing

Weights and tokens are random; lengths are those of DeepScaleR's problems. With `--template` each has 26 tokens before
it, about as many as Qwen2.5's chat template puts there, and one behind.
Every side gives a prompt's mean activations:

    ours            `extract_tokens`: stop at the layer, length-sorted batches, fused top-k, pooling, sparse rows
    bound           the bare truncated forward pass, same batches: no SAE, no pooling
    hidden states   transformers' `AutoModel(output_hidden_states=True)`, batches of 16 padded in data order, sae-lens's
                    dense `encode`
    sae-lens        its bridge's `run_with_cache_with_saes`, as its guide shows it, the same padded batches; only the
                    SAE's activations are cached, for all of them would not fit into memory
    sae-lens tuned  the same, stopped at the layer, on our batches: the most that route can give

`--profile` says where our side's time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from saerl_core import backbone as backbones
from saerl_core import extract, locations
from saerl_core.backbone import Backbone
from saerl_core.config import FeaturesConfig
from saerl_core.features import FeatureRows
from saerl_core.probes import bootstrap_interval

LENGTHS = (9, 25, 32, 36, 41, 45, 49, 53, 57, 61, 66, 71, 76, 81, 87, 96, 105, 118, 137, 179, 875)
"""Tokens of DeepScaleR's problems: 21 quantiles, from the shortest to the longest (BPE of 4,096)."""
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"layer": 6, "d_sae": 8192, "k": 32, "model": {
        "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 2816, "num_hidden_layers": 12,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 2048}},
    "qwen2.5-math-1.5b": {"layer": 14, "d_sae": 32_768, "k": 64, "model": {
        "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 4096}},
    "tiny": {"layer": 1, "d_sae": 512, "k": 8, "model": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048}},
}
SYSTEM = "<|system|>" + "Tom has 5 coins." * 4 + "<|user|>"
"""26 tokens of the toy's tokenizer with the mark of a user's turn."""
ANSWER = "<|assistant|>"
DEEPMATH_TOKENS = 10_000_000
_DATA_ORDER_BATCH = 16


def make_reader(folder: Path, shape: dict[str, Any], *, template: bool) -> tuple[list[int], list[int]]:
    """Write `model/` and `sae/`, random, and a tokenizer, whose template puts a system message first if asked to.

    Returns:
        The tokens that it puts before and behind every prompt then; none otherwise.
    """
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**shape["model"], tie_word_embeddings=True)).save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(locations.resolve("saerl:toy/lm", Path()))
    if template:
        tokenizer.chat_template = SYSTEM + "{{ messages[0]['content'] }}" + ANSWER
    tokenizer.save_pretrained(folder / "model")
    sae = TopKSAE(TopKSAEConfig(d_in=shape["model"]["hidden_size"], d_sae=shape["d_sae"], k=shape["k"],
                                metadata=SAEMetadata(hook_name=f"blocks.{shape['layer']}.hook_resid_post")))
    torch.nn.init.normal_(sae.W_enc, std=shape["model"]["hidden_size"] ** -0.5)
    sae.save_model(folder / "sae")
    return (tokenizer.encode(SYSTEM), tokenizer.encode(ANSWER)) if template else ([], [])


def draw_prompts(count: int, vocabulary: int) -> list[list[int]]:
    """Random tokens (none that means something to the tokenizer), lengths by inverse transform sampling."""
    rng = np.random.default_rng(0)
    lengths = np.interp(rng.random(count), np.linspace(0, 1, len(LENGTHS)), LENGTHS).astype(int)
    return [rng.integers(100, min(vocabulary, 500), length).tolist() for length in lengths]


@torch.inference_mode()
def bound(reader: Backbone, ids: list[list[int]], config: FeaturesConfig) -> None:
    """The truncated forward pass over the batches that extraction makes."""
    budget = backbones.token_budget(reader, config.tokens_per_batch)
    for batch in extract.batch_by_length([len(row) for row in ids], budget):
        backbones.residual_stream(reader, extract.pad([ids[i] for i in batch], reader.device)[0])


def _dense_mean(acts_BTS: torch.Tensor, real_BT: torch.Tensor) -> np.ndarray:
    acts_BTS = acts_BTS * real_BT[..., None]
    return (acts_BTS.sum(1, dtype=torch.float32) / real_BT.sum(1, keepdim=True)).float().cpu().numpy()


def in_data_order(ids: list[list[int]]) -> list[range]:
    """Batches as the prompts come."""
    return [range(start, min(start + _DATA_ORDER_BATCH, len(ids))) for start in range(0, len(ids), _DATA_ORDER_BATCH)]


@torch.inference_mode()
def hidden_states(model: Any, sae: Any, layer: int, ids: list[list[int]]) -> np.ndarray:
    """What one writes first: all hidden states, padding, dense activations. float32 [n, d_sae]."""
    means = []
    for batch in in_data_order(ids):
        ids_BT, real_BT = extract.pad([ids[i] for i in batch], model.device)
        output = model(input_ids=ids_BT, attention_mask=real_BT.long(), output_hidden_states=True)
        means.append(_dense_mean(sae.encode(output.hidden_states[layer + 1]), real_BT))
    return np.concatenate(means)


@torch.inference_mode()
def sae_lens_route(bridge: Any, sae: Any, ids: list[list[int]], batches: Iterable[Iterable[int]],
                   **stop: int) -> np.ndarray:
    """sae-lens's own way; `stop_at_layer=` is the tuned form. float32 [n, d_sae]."""
    means, order = [], []
    for batch in batches:
        ids_BT, real_BT = extract.pad([ids[i] for i in batch], sae.device)
        _, cache = bridge.run_with_cache_with_saes(
            ids_BT, saes=[sae], names_filter=lambda name: name.endswith("hook_sae_acts_post"), **stop)
        (acts_BTS,) = cache.values()
        means.append(_dense_mean(acts_BTS, real_BT))
        order += batch
    return np.concatenate(means)[np.argsort(order)]


def _sides(folder: Path, shape: dict[str, Any], ids: list[list[int]], config: FeaturesConfig,
           only_bound: bool) -> tuple[dict[str, Callable[[], Any]], Backbone]:
    reader, encoder = extract.load_reader(folder / "model", folder / "sae", shape["layer"], config)
    sides: dict[str, Callable[[], Any]] = {
        "bound": lambda: bound(reader, ids, config),
        "ours": lambda: extract.extract_tokens(reader, encoder, ids, config),
    }
    if not only_bound:
        from sae_lens import SAE, SAETransformerBridge
        from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

        sae: Any = SAE.load_from_disk(str(folder / "sae"), device=str(reader.device)).to(dtype=reader.dtype)
        classes: tuple[Any, Any] = (AutoModel, AutoModelForCausalLM)
        model, whole = (auto.from_pretrained(folder / "model", dtype=reader.dtype).to(reader.device).eval()
                        for auto in classes)
        bridge = SAETransformerBridge.boot_transformers(
            str(folder / "model"), hf_model=whole, tokenizer=AutoTokenizer.from_pretrained(folder / "model"),
            device=str(reader.device))
        sides["hidden states"] = lambda: hidden_states(model, sae, shape["layer"], ids)
        sides["sae-lens"] = lambda: sae_lens_route(bridge, sae, ids, in_data_order(ids))
        sorted_batches = extract.batch_by_length(list(map(len, ids)),
                                                 backbones.token_budget(reader, config.tokens_per_batch))
        sides["sae-lens tuned"] = lambda: sae_lens_route(bridge, sae, ids, sorted_batches,
                                                         stop_at_layer=shape["layer"] + 1)
    return sides, reader


def measure(sides: dict[str, Callable[[], Any]], rounds: int, device: torch.device) -> dict[str, np.ndarray]:
    """Seconds [rounds] of every side, in turn: CPU-seconds, or on a GPU the clock's."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, work in sides.items():
            started = clock()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:  # the first warms up
                seconds[name].append(clock() - started)
        sys.stderr.write(f"round {turn} of {rounds}\n")
    return {name: np.array(values) for name, values in seconds.items()}


def _difference(rows: FeatureRows, dense: np.ndarray) -> float:
    return float(np.abs(rows.matrix().toarray() - dense).max())


def _share_of_the_machine(tokens: int, seconds: float, reader: Backbone, shape: dict[str, Any]) -> dict[str, float]:
    """Share of the matrix rate measured in the reader's precision, and DeepMath-103K projected.

    Counted are two operations a weight of the layers and of the encoder: neither attention nor padding.
    """
    cuda = reader.device.type == "cuda"
    size, clock, best = 8192 if cuda else 2048, time.perf_counter if cuda else time.process_time, 0.0
    matrix = torch.ones(size, size, device=reader.device, dtype=reader.dtype)
    for _ in range(8):
        started = clock()
        _ = matrix @ matrix
        if cuda:
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (clock() - started))
    layers: Any = reader.model.layers
    weights = sum(parameter.numel() for parameter in layers.parameters())
    weights += shape["model"]["hidden_size"] * shape["d_sae"]
    return {"matrix gflops": round(best / 1e9, 1),
            "share of matrix rate": round(2 * weights * tokens / seconds / best, 3),
            "deepmath seconds": round(DEEPMATH_TOKENS * seconds / tokens, 1)}


def compare(shape: dict[str, Any], ids: list[list[int]], config: FeaturesConfig,
            asked: argparse.Namespace) -> dict[str, Any]:
    """All figures of one shape; a table of them is printed."""
    with tempfile.TemporaryDirectory() as folder:
        before, behind = make_reader(Path(folder), shape, template=asked.template)
        ids = [before + row + behind for row in ids]
        tokens = sum(map(len, ids))
        sides, reader = _sides(Path(folder), shape, ids, config, asked.only_bound)
    cuda = reader.device.type == "cuda"
    if asked.profile:
        with torch.profiler.profile() as profile:
            sides["ours"]()
        sort = "self_cuda_time_total" if cuda else "self_cpu_time_total"
        sys.stdout.write(profile.key_averages().table(sort_by=sort, row_limit=25, max_name_column_width=40) + "\n")
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        sides["ours"]()
    peak = {"peak gib of ours": round(torch.cuda.max_memory_allocated() / 2**30, 2)} if cuda else {}
    differences = {name: _difference(sides["ours"](), sides[name]()) for name in sides if name not in ("ours", "bound")}
    seconds = measure(sides, asked.rounds, reader.device)
    batches = extract.batch_by_length(list(map(len, ids)), backbones.token_budget(reader, config.tokens_per_batch))
    unit = "second" if cuda else "CPU-second"
    found: dict[str, Any] = {
        "shape": shape, "tokens": tokens, "dtype": str(reader.dtype), **peak, "largest difference": differences,
        "padding": {"ours": _padding(ids, batches), "data order": _padding(ids, in_data_order(ids))},
        **_share_of_the_machine(tokens, float(np.median(seconds["ours"])), reader, shape), "sides": {}}
    for name, values in seconds.items():
        ratios = values / seconds["ours"]
        low, high = bootstrap_interval(lambda i, ratios=ratios: float(np.median(ratios[i])), len(ratios))
        found["sides"][name] = figures = {
            f"tokens per {unit}": round(tokens / float(np.median(values)), 1),
            "ours / it": round(float(np.median(ratios)), 3),
            "interval": [round(low, 3), round(high, 3)]}
        sys.stdout.write(f"{name:<16} {figures[f'tokens per {unit}']:>10} tokens per {unit}; ours is "
                         f"{figures['ours / it']} of it ({low:.3f} to {high:.3f})\n")
    return found


def _padding(ids: list[list[int]], batches: Iterable[Iterable[int]]) -> float:
    """Share of the tokens run that are padding."""
    lengths = [[len(ids[i]) for i in batch] for batch in batches]
    return round(1 - sum(map(sum, lengths)) / sum(max(batch) * len(batch) for batch in lengths), 3)


def main() -> None:
    """Print a table, then a JSON line, for every width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="default: small on a CPU, qwen2.5-math-1.5b on a GPU")
    parser.add_argument("--prompts", type=int, help="default: 64 on a CPU, 20,000 on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--d-sae", type=int, nargs="+", help="widths of the SAE; default on a GPU: 32,768 and 65,536")
    parser.add_argument("--template", action="store_true", help="a system message before every prompt")
    parser.add_argument("--only-bound", action="store_true", help="leave the other routes out")
    parser.add_argument("--profile", action="store_true", help="print torch's profile of our side")
    asked = parser.parse_args()
    if asked.device == "cpu":
        if "OMP_WAIT_POLICY" not in os.environ:  # as `saerl` sets it: threads that spin cost up to 30x; read at import
            os.execve(sys.executable, [sys.executable, "-m", "benchmarks.extraction", *sys.argv[1:]],
                      {**os.environ, "OMP_WAIT_POLICY": "passive"})
        torch.set_num_threads(2)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-2:])
    shape = SHAPES[asked.shape or ("small" if asked.device == "cpu" else "qwen2.5-math-1.5b")]
    ids = draw_prompts(asked.prompts or (64 if asked.device == "cpu" else 20_000), shape["model"]["vocab_size"])
    config = FeaturesConfig(model="model", sae="sae", device=asked.device, sink_norm_ratio=1e9)
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "sae-lens")}
    versions["python"] = platform.python_version()
    for width in asked.d_sae or ([32_768, 65_536] if asked.device == "cuda" else [shape["d_sae"]]):
        found = compare(shape | {"d_sae": width}, ids, config, asked)
        sys.stdout.write(json.dumps({**found, "prompts": len(ids), "rounds": asked.rounds,
                                     "versions": versions}) + "\n")


if __name__ == "__main__":
    main()
