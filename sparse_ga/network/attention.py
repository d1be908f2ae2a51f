"""Attention over packed sequences: tokens of all images lie in one (T, C) tensor, without padding.

A sequence is one image's tokens. Linear layers see the packed tensor; only attention needs to know where a sequence
ends. So an image with half the foreground costs half, whatever else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    query: Tensor, key: Tensor, value: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]
) -> Tensor:
    """Softmax attention (sum Lq, h, d) of every sequence's queries to the same sequence's keys.

    `query` (sum Lq, h, d); `key`, `value` (sum Lk, h, d). Queries that have no key at all receive zeros.
    """
    equal = len(set(query_lengths)) == 1 and len(set(key_lengths)) == 1
    if equal and query_lengths[0] > 0 and key_lengths[0] > 0:
        return _attend_equal(query, key, value, len(query_lengths))
    if query.device.type == "cpu":
        return _attend_each(query, key, value, query_lengths, key_lengths)
    return attend_padded(query, key, value, query_lengths, key_lengths)


def _attend_equal(query: Tensor, key: Tensor, value: Tensor, count: int) -> Tensor:
    q, k, v = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in (query, key, value))  # (B, h, L, d)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1)  # (T, h, d)


def _attend_each(
    query: Tensor, key: Tensor, value: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]
) -> Tensor:
    """One kernel per sequence: nothing is padded; right on a CPU, where launching costs nothing."""
    parts = []
    keys, values = key.split(list(key_lengths)), value.split(list(key_lengths))
    for q, k, v in zip(query.split(list(query_lengths)), keys, values, strict=True):
        empty = len(q) == 0 or len(k) == 0
        parts.append(torch.zeros_like(q) if empty else _attend_equal(q, k, v, 1))  # (Lq, h, d)
    return torch.cat(parts)


def attend_padded(
    query: Tensor, key: Tensor, value: Tensor, query_lengths: Sequence[int], key_lengths: Sequence[int]
) -> Tensor:
    """One kernel for all sequences, padded to the longest and masked: right where launches are dear (CUDA, MPS)."""
    q_slots, q_valid = _slots(query_lengths, query.device)
    k_slots, k_valid = _slots(key_lengths, key.device)
    q = _pad(query, q_slots, q_valid)  # (B, h, Lq, d)
    k, v = _pad(key, k_slots, k_valid), _pad(value, k_slots, k_valid)  # (B, h, Lk, d)
    no_key = ~k_valid.any(1)  # (B,)
    allowed = (k_valid | no_key[:, None])[:, None, None, :]  # (B, 1, 1, Lk); a row without keys must not be all False
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)  # (B, h, Lq, d)
    out = out.masked_fill(no_key[:, None, None, None], 0.0)
    return out.transpose(1, 2)[q_valid]  # (sum Lq, h, d)


def attend_dense(query: Tensor, key: Tensor, value: Tensor, kept: Tensor | None) -> Tensor:
    """Softmax attention (B, Lq, h, d) of `query` (B, Lq, h, d) to the kept ones of `key` and `value` (B, Lk, h, d).

    `kept` (B, Lk) bool, or None for all. Queries that have no key at all receive zeros.
    """
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    if kept is None:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    no_key = ~kept.any(1)  # (B,)
    allowed = (kept | no_key[:, None])[:, None, None, :].expand(-1, -1, q.shape[2], -1)  # (B, 1, Lq, Lk)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)  # (B, h, Lq, d)
    return out.masked_fill(no_key[:, None, None, None], 0.0).transpose(1, 2)


def _slots(lengths: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Row of the packed tensor in every padded slot (B, L), and whether the slot is taken (B, L)."""
    longest = max(max(lengths), 1)
    starts = torch.tensor([0, *accumulate(lengths)][:-1], device=device)  # (B,)
    offset = torch.arange(longest, device=device)  # (L,)
    valid = offset < torch.tensor(list(lengths), device=device)[:, None]  # (B, L)
    return torch.where(valid, starts[:, None] + offset, 0), valid


def _pad(packed: Tensor, slots: Tensor, valid: Tensor) -> Tensor:
    if len(packed) == 0:
        return packed.new_zeros(*slots.shape, *packed.shape[1:]).transpose(1, 2)
    padded = packed[slots].masked_fill(~valid[:, :, None, None], 0.0)  # (B, L, h, d)
    return padded.transpose(1, 2)
