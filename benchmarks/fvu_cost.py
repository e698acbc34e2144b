"""What measuring the SAE's reconstruction costs extraction: `python -m benchmarks.fvu_cost`.

A 12-layer Qwen2 of width 512 with random weights, layer 6, TopK SAE of 8,192 features, k = 32; the toy's prompts,
joined to some 160 tokens. With and without, in turn, in CPU-seconds.
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from saerl_core import locations
from saerl_core.config import FeaturesConfig
from saerl_core.extract import extract, load_reader

PROMPTS, JOINED, ROUNDS = 96, 5, 6


def make_reader(folder: Path) -> None:
    """Write `model/` and `sae/`."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(
        vocab_size=512, hidden_size=512, intermediate_size=1376, num_hidden_layers=12, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=512)).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(locations.resolve("saerl:toy/lm", Path())).save_pretrained(folder / "model")
    TopKSAE(TopKSAEConfig(d_in=512, d_sae=8192, k=32, metadata=SAEMetadata(
        hook_name="blocks.6.hook_resid_post"))).save_model(folder / "sae")


def main() -> None:
    """Print the ratio and a JSON line."""
    torch.set_num_threads(1)
    with gzip.open(locations.resolve("saerl:toy/train.jsonl.gz", Path()), "rt") as file:
        texts = [json.loads(line)["problem"] for line in file][: PROMPTS * JOINED]
    prompts = [[{"role": "user", "content": " ".join(texts[i : i + JOINED])}] for i in range(0, len(texts), JOINED)]
    config = FeaturesConfig(model="model", sae="sae", device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        make_reader(Path(folder))
        reader, sae = load_reader(Path(folder, "model"), Path(folder, "sae"), 6, config)
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    tokens = 0
    for turn in range(ROUNDS + 1):
        for name, read in (("without", replace(sae, decode=None)), ("with", sae)):
            started = time.process_time()
            tokens = int(extract(reader, read, prompts, config).tokens.sum())
            if turn:  # the first warms up
                seconds[name].append(time.process_time() - started)
    ratios = np.array(seconds["with"]) / np.array(seconds["without"])
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    sys.stdout.write(f"{tokens} tokens: {median['without']:.2f} CPU-seconds without, {median['with']:.2f} with; ratio "
                     f"{np.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f}, {ROUNDS} rounds)\n")
    sys.stdout.write(json.dumps({"tokens": tokens, **median, "ratios": ratios.round(4).tolist()}) + "\n")


if __name__ == "__main__":
    main()
