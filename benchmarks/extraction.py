"""Extraction beside its bound and beside other routes, in tokens per CPU-second, all sides in turn in one run.

    python -m benchmarks.extraction                      two CPU cores: 12-layer Qwen2 of width 512, layer 6, SAE of 8k
    python -m benchmarks.extraction --device cuda        a GPU: Qwen2.5-Math-1.5B's shape, middle layer, bf16, k = 64

Weights and tokens are random; lengths are those of DeepScaleR's problems. Sides:

    ours            `extract_tokens`: stop at the layer, length-sorted batches, fused top-k, pooling, sparse rows
    bound           the bare truncated forward pass, same batches: no SAE, no pooling
    hidden states   `output_hidden_states`, padded batches in data order, sae-lens's dense encode, mean of dense rows
    sae-lens        its bridge with the SAE spliced in, stopped at the layer, the same batches, mean of dense rows

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
from collections.abc import Callable
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

LENGTHS = (9, 25, 32, 36, 41, 45, 49, 53, 57, 61, 66, 71, 76, 81, 87, 96, 105, 118, 137, 179, 875)
"""Tokens of DeepScaleR's problems: 21 quantiles, from the shortest to the longest (BPE of 4,096)."""
SHAPES: dict[str, dict[str, Any]] = {
    "cpu": {"layer": 6, "d_sae": 8192, "k": 32, "model": {
        "vocab_size": 4096, "hidden_size": 512, "intermediate_size": 2816, "num_hidden_layers": 12,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 2048}},
    "cuda": {"layer": 14, "d_sae": 32_768, "k": 64, "model": {
        "vocab_size": 151_936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "max_position_embeddings": 4096}},
}
DEEPMATH_TOKENS = 10_000_000
_DATA_ORDER_BATCH = 16


def make_reader(folder: Path, shape: dict[str, Any]) -> None:
    """Write `model/` and `sae/`, random."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**shape["model"], tie_word_embeddings=True)).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(locations.resolve("saerl:toy/lm", Path())).save_pretrained(folder / "model")
    sae = TopKSAE(TopKSAEConfig(d_in=shape["model"]["hidden_size"], d_sae=shape["d_sae"], k=shape["k"],
                                metadata=SAEMetadata(hook_name=f"blocks.{shape['layer']}.hook_resid_post")))
    torch.nn.init.normal_(sae.W_enc, std=shape["model"]["hidden_size"] ** -0.5)
    sae.save_model(folder / "sae")


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


@torch.inference_mode()
def hidden_states(model: Any, sae: Any, layer: int, ids: list[list[int]]) -> np.ndarray:
    """What one writes first: all hidden states, padding, dense activations. float32 [n, d_sae]."""
    means = []
    for start in range(0, len(ids), _DATA_ORDER_BATCH):
        ids_BT, real_BT = extract.pad(ids[start : start + _DATA_ORDER_BATCH], model.device)
        output = model(input_ids=ids_BT, attention_mask=real_BT.long(), output_hidden_states=True)
        means.append(_dense_mean(sae.encode(output.hidden_states[layer + 1]), real_BT))
    return np.concatenate(means)


@torch.inference_mode()
def sae_lens_route(bridge: Any, sae: Any, layer: int, ids: list[list[int]], reader: Backbone,
                   config: FeaturesConfig) -> np.ndarray:
    """sae-lens's own way, at its best: only the SAE's activations kept, nothing above the layer. float32 [n, d_sae]."""
    means, order = [], []
    budget = backbones.token_budget(reader, config.tokens_per_batch)
    for batch in extract.batch_by_length([len(row) for row in ids], budget):
        ids_BT, real_BT = extract.pad([ids[i] for i in batch], reader.device)
        _, cache = bridge.run_with_cache_with_saes(
            ids_BT, saes=[sae], names_filter=lambda name: name.endswith("hook_sae_acts_post"), stop_at_layer=layer + 1)
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
        from transformers import AutoModelForCausalLM, AutoTokenizer

        sae: Any = SAE.load_from_disk(str(folder / "sae"), device=str(reader.device)).to(dtype=reader.dtype)
        load: Any = AutoModelForCausalLM.from_pretrained
        model, whole = (load(folder / "model", dtype=reader.dtype).to(reader.device).eval() for _ in range(2))
        bridge = SAETransformerBridge.boot_transformers(
            str(folder / "model"), hf_model=whole, tokenizer=AutoTokenizer.from_pretrained(folder / "model"),
            device=str(reader.device))
        sides["hidden states"] = lambda: hidden_states(model, sae, shape["layer"], ids)
        sides["sae-lens"] = lambda: sae_lens_route(bridge, sae, shape["layer"], ids, reader, config)
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
    return {name: np.array(values) for name, values in seconds.items()}


def _difference(rows: FeatureRows, dense: np.ndarray) -> float:
    return float(np.abs(rows.matrix().toarray() - dense).max())


def _gpu_figures(tokens: int, seconds: float, reader: Backbone, shape: dict[str, Any]) -> dict[str, float]:
    """Share of the measured bf16 matrix rate, peak memory, DeepMath-103K projected."""
    size, best = 8192, 0.0
    matrix = torch.ones(size, size, device=reader.device, dtype=reader.dtype)
    for _ in range(8):
        torch.cuda.synchronize()
        started = time.perf_counter()
        _ = matrix @ matrix
        torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    layers: Any = reader.model.layers
    weights = sum(parameter.numel() for parameter in layers.parameters())
    weights += shape["model"]["hidden_size"] * shape["d_sae"]
    return {"matrix_tflops": round(best / 1e12, 1),
            "share_of_matrix_rate": round(2 * weights * tokens / seconds / best, 3),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "deepmath_seconds": round(DEEPMATH_TOKENS * seconds / tokens, 1)}


def main() -> None:
    """Print a table, then a JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=tuple(SHAPES), default="cpu")
    parser.add_argument("--prompts", type=int, help="default: 200 on a CPU, 20,000 on a GPU")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--d-sae", type=int, help="another width of the SAE")
    parser.add_argument("--only-bound", action="store_true", help="leave the other two routes out")
    parser.add_argument("--profile", action="store_true", help="print torch's profile of our side")
    asked = parser.parse_args()
    if asked.device == "cpu":
        torch.set_num_threads(2)
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-2:])
    shape = SHAPES[asked.device] | ({"d_sae": asked.d_sae} if asked.d_sae else {})
    ids = draw_prompts(asked.prompts or (200 if asked.device == "cpu" else 20_000), shape["model"]["vocab_size"])
    tokens = sum(map(len, ids))
    config = FeaturesConfig(model="model", sae="sae", device=asked.device, sink_norm_ratio=1e9)
    with tempfile.TemporaryDirectory() as folder:
        make_reader(Path(folder), shape)
        sides, reader = _sides(Path(folder), shape, ids, config, asked.only_bound)
    differences = {name: _difference(sides["ours"](), sides[name]()) for name in ("hidden states", "sae-lens")
                   if name in sides}
    if asked.profile:
        with torch.profiler.profile() as profile:
            sides["ours"]()
        sort = "self_cpu_time_total" if asked.device == "cpu" else "self_cuda_time_total"
        sys.stdout.write(profile.key_averages().table(sort_by=sort, row_limit=25, max_name_column_width=40) + "\n")
    seconds = measure(sides, asked.rounds, reader.device)
    unit = "CPU-second" if asked.device == "cpu" else "second"
    found: dict[str, Any] = {"tokens": tokens, "largest difference": differences}
    for name, values in seconds.items():
        ratios = values / seconds["ours"]
        found[name] = {f"tokens per {unit}": round(tokens / float(np.median(values)), 1),
                       "ours / it": round(float(np.median(ratios)), 3),
                       "range": [round(float(ratios.min()), 3), round(float(ratios.max()), 3)]}
        sys.stdout.write(f"{name:<14} {found[name][f'tokens per {unit}']:>10} tokens per {unit}; ours is "
                         f"{found[name]['ours / it']} of it ({ratios.min():.3f} to {ratios.max():.3f})\n")
    if asked.device == "cuda":
        found |= _gpu_figures(tokens, float(np.median(seconds["ours"])), reader, shape)
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "sae-lens")}
    sys.stdout.write(json.dumps({**found, "shape": shape, "rounds": asked.rounds, "python": platform.python_version(),
                                 **versions}) + "\n")


if __name__ == "__main__":
    main()
