"""A TopK encoder: of a token's k largest pre-activations, those above 0.

Of d_sae products with the residual vector only k are wanted. A CPU with bfloat16 instructions multiplies bfloat16 twice
as fast as float32, or faster: there all products are made in bfloat16, with a bound on their error; what cannot be
among the k largest is dropped, and the few that are left are multiplied again in float32. The result is the same, but
for float32's own rounding.

Legend: T tokens, D residual width (d_in), S features (d_sae), G groups of M features, K active features per token, R
groups with a candidate, over all tokens, N candidates or features that fire, over all tokens, C most candidates of a
token.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

Entries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(values_N, token_N, feature_N): the features that fire on some tokens, tokens ascending."""
Encode = Callable[[torch.Tensor], Entries]
"""h_TD → what fires."""

_WIDE = 256  # residual width from which the products cost more than the search for candidates
_ROUNDING = 2.0**-8  # bfloat16's, relative
_GROUP = 16  # features of which the largest is taken first
_MOST_CANDIDATES = 1 / 16  # of all pre-activations; beyond, one dense product is cheaper

warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")


def top_k(W_DS: torch.Tensor, bias_S: torch.Tensor, k: int) -> Encode:
    """The encoder, the fastest way that the device has."""
    wide_on_cpu = W_DS.device.type == "cpu" and len(W_DS) >= _WIDE
    if wide_on_cpu and W_DS.dtype == torch.float32 and _multiplies_bfloat16():
        return screened(W_DS, bias_S, k)
    return plain(W_DS, bias_S, k)


def _multiplies_bfloat16() -> bool:
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def plain(W_DS: torch.Tensor, bias_S: torch.Tensor, k: int) -> Encode:
    """The encoder by one dense product."""

    def encode(h_TD: torch.Tensor) -> Entries:
        values_TK, features_TK = torch.addmm(bias_S, h_TD.to(W_DS.dtype), W_DS).topk(k, dim=-1, sorted=False)
        fires_TK = values_TK > 0
        return values_TK[fires_TK].float(), fires_TK.nonzero()[:, 0], features_TK[fires_TK]

    return encode


def screened(W_DS: torch.Tensor, bias_S: torch.Tensor, k: int) -> Encode:
    """The same, by a product in bfloat16 and few in float32; for the CPU."""
    W_DS = W_DS.T.contiguous().T  # feature by feature: of another order the sparse product makes a copy every time
    dense = plain(W_DS, bias_S, k)
    rough_DS, rough_S = W_DS.bfloat16(), bias_S.bfloat16()
    longest, most_lost = W_DS.norm(dim=0).max(), (W_DS - rough_DS.float()).norm(dim=0).max()
    bias_lost = (bias_S - rough_S.float()).abs().max()
    if not (longest + most_lost + bias_lost).isfinite():  # a feature switched off by a bias of -inf, say
        return dense

    def encode(h_TD: torch.Tensor) -> Entries:
        if not len(h_TD):
            return dense(h_TD)
        h_TD = h_TD.float()
        rough_TD = h_TD.bfloat16()
        rough_TS = torch.addmm(rough_S, rough_TD, rough_DS)
        # Cauchy-Schwarz, of what rounding took from h and from W; and what float32 loses in a sum of D products.
        length_T = rough_TD.float().norm(dim=1)
        error_T = ((h_TD - rough_TD.float()).norm(dim=1) * longest + length_T * most_lost + bias_lost
                   + 2 * len(W_DS) * torch.finfo(torch.float32).eps * length_T * longest)
        token_N, feature_N = _candidates(rough_TS, error_T, k)
        if len(token_N) > _MOST_CANDIDATES * rough_TS.numel():
            return dense(h_TD)
        starts_T = torch.searchsorted(token_N, torch.arange(len(h_TD) + 1))
        wanted_TS = torch.sparse_csr_tensor(starts_T, feature_N, torch.zeros(len(feature_N)), rough_TS.shape,
                                            check_invariants=False)
        values_N = torch.sparse.sampled_addmm(wanted_TS, h_TD, W_DS, beta=0).values() + bias_S[feature_N]
        return _largest(values_N, token_N, feature_N, starts_T, k)

    return encode


def _candidates(rough_TS: torch.Tensor, error_T: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(token_N, feature_N): all products that can be positive and among a token's k largest, tokens ascending.

    The largest products of k groups are k products, so the k-th largest is no smaller than the smallest of them. A
    group whose largest is too small is not looked into.
    """
    tokens, features = rough_TS.shape
    members = _GROUP if features % _GROUP == 0 and features // _GROUP >= k else 1
    rough_TMG = rough_TS.view(tokens, members, features // members)
    best_TG = rough_TMG.amax(1)
    kth_T = best_TG.float().topk(k, dim=1, sorted=False).values.amin(1)
    margin_T = 2 * error_T + 4 * _ROUNDING * kth_T.abs()  # both products, as bfloat16 holds them, and the floor itself
    floor_T = (kth_T - margin_T).maximum(-2 * error_T).nan_to_num(nan=-torch.inf).bfloat16()  # NaN: inf less inf
    token_R, group_R = (best_TG >= floor_T[:, None]).nonzero(as_tuple=True)
    row_N, member_N = (rough_TMG[token_R, :, group_R] >= floor_T[token_R, None]).nonzero(as_tuple=True)
    return token_R[row_N], member_N * (features // members) + group_R[row_N]


def _largest(values_N: torch.Tensor, token_N: torch.Tensor, feature_N: torch.Tensor, starts_T: torch.Tensor,
             k: int) -> Entries:
    """Of each token's candidates the k largest, if they are above 0."""
    place_N = torch.arange(len(token_N)) - starts_T[token_N]
    most = int(starts_T.diff().max())
    values_TC = values_N.new_zeros(len(starts_T) - 1, max(most, k))
    values_TC[token_N, place_N] = values_N
    values_TK, places_TK = values_TC.topk(k, dim=1, sorted=False)
    fires_TK = values_TK > 0
    fires_N = fires_TK.nonzero()[:, 0]
    return values_TK[fires_TK], fires_N, feature_N[starts_T[fires_N] + places_TK[fires_TK]]
