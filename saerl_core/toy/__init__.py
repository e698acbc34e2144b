"""The embedded default: a small world of word problems, a tiny Qwen2 that half understands it, and its SAE.

Nothing here needs a GPU, a hub or a server. The made files lie in `assets/` (`saerl:toy/lm`, `saerl:toy/sae`,
`saerl:toy/train.jsonl.gz`, `saerl:toy/heldout.jsonl.gz`); `build.build` makes them again from nothing.
"""
