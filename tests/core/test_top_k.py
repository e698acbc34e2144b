"""The k largest pre-activations, by way of bfloat16, are those of the dense float32 product."""

from __future__ import annotations

import pytest
import torch

from saerl_core import top_k as topk
from saerl_core.top_k import Encode, Entries


def _drawn(tokens: int, width: int, features: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    h_TD, W_DS = torch.randn(tokens, width, generator=draw), torch.randn(width, features, generator=draw)
    return h_TD, W_DS / width**0.5, torch.randn(features, generator=draw) / 10


def _sorted(entries: Entries) -> Entries:
    values_N, token_N, feature_N = entries
    assert (token_N.diff() >= 0).all()
    order_N = (token_N * (int(feature_N.max()) + 1) + feature_N).argsort()
    return values_N[order_N], token_N[order_N], feature_N[order_N]


def _assert_same(ours: Encode, plain: Encode, h_TD: torch.Tensor) -> None:
    for one, other in zip(_sorted(ours(h_TD)), _sorted(plain(h_TD)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(h_TD.nan_to_num().abs().max()))


@pytest.mark.parametrize(("width", "features", "k"), [
    (64, 1024, 16),
    (64, 1000, 3),  # no groups of 16
    (32, 128, 30),  # fewer groups than k
    (512, 8192, 32),
    (8, 16, 16),  # all of them
])
def test_screening_finds_what_the_dense_product_finds(width: int, features: int, k: int) -> None:
    h_TD, W_DS, bias_S = _drawn(100, width, features)
    _assert_same(topk.screened(W_DS, bias_S, k), topk.plain(W_DS, bias_S, k), h_TD)


@pytest.mark.parametrize("shift", [-10.0, 0.0, 10.0])
def test_screening_holds_for_tokens_of_any_size_and_features_that_fire_always_or_never(shift: float) -> None:
    h_TD, W_DS, bias_S = _drawn(60, 64, 1024)
    h_TD *= torch.logspace(-6, 6, 60)[:, None]
    h_TD[:, 3] += shift  # a direction that all tokens share, as residual streams have them
    h_TD[7] = 0
    bias_S[:900] += shift
    _assert_same(topk.screened(W_DS, bias_S, 16), topk.plain(W_DS, bias_S, 16), h_TD)


def test_products_closer_than_bfloat16_can_tell_are_told_apart() -> None:
    h_TD, W_DS, _ = _drawn(50, 64, 4096)
    W_DS[:, :40] = torch.nn.functional.normalize(h_TD.mean(0), dim=0)[:, None] * (3 + torch.arange(40) * 1e-3)
    h_TD += 3 * h_TD.mean(0)
    plain = topk.plain(W_DS, torch.zeros(4096), 8)
    assert (plain(h_TD)[2] < 40).float().mean() > 0.5
    _assert_same(topk.screened(W_DS, torch.zeros(4096), 8), plain, h_TD)


def test_a_token_without_a_number_fires_nothing() -> None:
    h_TD, W_DS, bias_S = _drawn(3, 64, 1024)
    h_TD[1] = float("nan")
    _, token_N, _ = topk.screened(W_DS, bias_S, 16)(h_TD)
    assert set(token_N.tolist()) == {0, 2}


@pytest.mark.parametrize("place", ["h overflows in bfloat16", "h overflows its norm", "bias", "weight"])
def test_what_has_no_bound_is_multiplied_in_float32(place: str) -> None:
    h_TD, W_DS, bias_S = _drawn(5, 64, 1024)
    W_DS = W_DS.bfloat16().float()
    if place == "h overflows in bfloat16":
        h_TD[1, 3] = 3.4e38
    elif place == "h overflows its norm":
        h_TD *= 1e20
    elif place == "bias":
        bias_S[5] = -torch.inf
    else:
        W_DS[0, 5] = torch.inf
    ours, plain = (make(W_DS, bias_S, 16)(h_TD) for make in (topk.screened, topk.plain))
    assert len(plain[0])
    for one, other in zip(_sorted(ours), _sorted(plain), strict=True):
        torch.testing.assert_close(one, other)


def test_no_tokens_fire_nothing() -> None:
    _, W_DS, bias_S = _drawn(1, 64, 1024)
    assert [len(part) for part in topk.screened(W_DS, bias_S, 16)(torch.empty(0, 64))] == [0, 0, 0]


@pytest.mark.parametrize(("able", "expected"), [
    ({"avx512_bf16": True}, "screened"), ({"amx_bf16": True}, "screened"), ({"avx512_f": True}, "plain"), ({}, "plain"),
])
def test_only_a_cpu_that_multiplies_bfloat16_screens(
    able: dict[str, bool], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    _, W_DS, bias_S = _drawn(1, 256, 32)
    assert topk.top_k(W_DS, bias_S, 4).__qualname__.split(".")[0] == expected
    assert topk.top_k(W_DS.bfloat16(), bias_S.bfloat16(), 4).__qualname__.split(".")[0] == "plain"
    assert topk.top_k(W_DS[:128], bias_S, 4).__qualname__.split(".")[0] == "plain"  # not worth it
