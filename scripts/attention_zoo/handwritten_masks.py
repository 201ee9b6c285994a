"""Masks as people write them: predicates, and the modules that make tensors of them.

A predicate takes broadcastable index tensors of queries and keys and returns where they see each
other. ``Arithmetic`` writes it into the graph, ``Buffer`` evaluates it once into a constant that
is sliced to the sequence. All masks are for self-attention: Sq = Sk = S.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from attention_zoo.model import POSITIONS

Predicate = Callable[[Tensor, Tensor], Tensor]

WINDOW = 3
CHUNK = 6
GLOBAL_TOKENS = 2
PREFIX = 5
BLOCK = 4
END_OF_DOCUMENT = 7
LOWEST = torch.finfo(torch.float32).min


def causal(query: Tensor, key: Tensor) -> Tensor:
    """Keys up to the query's own position."""
    return key <= query


def window(query: Tensor, key: Tensor) -> Tensor:
    """``WINDOW`` tokens on both sides."""
    return (query - key).abs() <= WINDOW


def causal_window(query: Tensor, key: Tensor) -> Tensor:
    """The query's token and the ``CHUNK`` - 1 before it."""
    return (key <= query) & (query - key < CHUNK)


def dilated(query: Tensor, key: Tensor) -> Tensor:
    """Every second token in a window of 2 * ``WINDOW`` on both sides."""
    return ((query - key).abs() <= 2 * WINDOW) & ((query - key) % 2 == 0)


def causal_dilated(query: Tensor, key: Tensor) -> Tensor:
    """Every third token of the last 3 * ``WINDOW``."""
    distance = query - key
    return (distance >= 0) & (distance <= 3 * WINDOW) & (distance % 3 == 0)


def strided(query: Tensor, key: Tensor) -> Tensor:
    """Sparse Transformer's strided pattern (arXiv 1904.10509, section 4.3)."""
    distance = query - key
    return (distance >= 0) & ((distance < CHUNK) | (distance % CHUNK == 0))


def fixed_strided(query: Tensor, key: Tensor) -> Tensor:
    """Sparse Transformer's fixed pattern: the own chunk, and the last token of each."""
    own = torch.div(query, CHUNK, rounding_mode="floor") == torch.div(
        key, CHUNK, rounding_mode="floor"
    )
    return (key <= query) & (own | (key % CHUNK == CHUNK - 1))


def longformer(query: Tensor, key: Tensor) -> Tensor:
    """A window and the first ``GLOBAL_TOKENS`` rows and columns (arXiv 2004.05150)."""
    return ((query - key).abs() <= WINDOW) | (query < GLOBAL_TOKENS) | (key < GLOBAL_TOKENS)


def chunked(query: Tensor, key: Tensor) -> Tensor:
    """Tokens of the same chunk."""
    return query // CHUNK == key // CHUNK


def causal_chunked(query: Tensor, key: Tensor) -> Tensor:
    """Earlier tokens of the same chunk, as in Llama 4."""
    return (key <= query) & (query // CHUNK == key // CHUNK)


def prefix(query: Tensor, key: Tensor) -> Tensor:
    """Causal behind a prefix that all see."""
    return (key <= query) | (key < PREFIX)


def random_blocks() -> Tensor:
    """Return the random part of BigBird, bool [blocks, blocks]."""
    generator = torch.Generator().manual_seed(3)
    return torch.rand(POSITIONS // BLOCK, POSITIONS // BLOCK, generator=generator) < 0.12


def bigbird(query: Tensor, key: Tensor) -> Tensor:
    """Longformer's pattern and random blocks (arXiv 2007.14062, section 2)."""
    return longformer(query, key) | random_blocks()[query // BLOCK, key // BLOCK]


def table(predicate: Predicate, positions: int = POSITIONS) -> Tensor:
    """Return the predicate as bool [positions, positions]."""
    index = torch.arange(positions)
    return predicate(index[:, None], index[None, :])


def unequal_blocks() -> Tensor:
    """Blocks of different sizes along the diagonal, bool [POSITIONS, POSITIONS]."""
    sizes = (5, 11, 8, 16, 3, 21)
    return torch.block_diag(*(torch.ones(size, size) for size in sizes)).bool()


def additive(keep: Tensor, fill: float = float("-inf")) -> Tensor:
    """Return 0 where ``keep`` and ``fill`` elsewhere, as float32."""
    return torch.zeros(keep.shape).masked_fill(~keep, fill)


class Arithmetic(nn.Module):
    """A predicate on ``torch.arange``: [B, S, E] -> bool keep [S, S] or [1, 1, S, S]."""

    def __init__(self, predicate: Predicate, *, rank: Literal[2, 4] = 2) -> None:
        super().__init__()
        self.predicate = predicate
        self.rank = rank

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the mask."""
        position = torch.arange(hidden.shape[1], device=hidden.device)
        if self.rank == 4:
            return self.predicate(position.view(1, 1, -1, 1), position.view(1, 1, 1, -1))
        return self.predicate(position[:, None], position[None, :])


class Buffer(nn.Module):
    """A constant [POSITIONS, POSITIONS], sliced: [B, S, E] -> [S, S] or [1, 1, S, S]."""

    def __init__(self, values: Tensor, *, rank: Literal[2, 4] = 2) -> None:
        super().__init__()
        self.register_buffer("values", values if rank == 2 else values[None, None])

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the mask."""
        sequence = hidden.shape[1]
        return self.get_buffer("values")[..., :sequence, :sequence]


class Written(nn.Module):
    """A mask written as one expression of the length: [B, S, E] -> ``make(S)``."""

    def __init__(self, make: Callable[[int], Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the mask."""
        return self.make(hidden.shape[1])


def ones_tril(length: int) -> Tensor:
    """``torch.tril`` of ones, float [S, S]."""
    return torch.tril(torch.ones(length, length))


def triu_of_infinities(length: int) -> Tensor:
    """Minus infinity above the diagonal, as in nn.Transformer's examples."""
    return torch.triu(torch.full((length, length), float("-inf")), diagonal=1)


def band(length: int) -> Tensor:
    """A window as the difference of two triangles, bool [S, S]."""
    return torch.ones(length, length).tril(WINDOW).triu(-WINDOW).bool()


def longformer_assigned(length: int) -> Tensor:
    """Longformer's pattern with rows and columns assigned in place, bool [S, S]."""
    keep = torch.ones(length, length, dtype=torch.bool).tril(WINDOW).triu(-WINDOW)
    keep[:GLOBAL_TOKENS] = True
    keep[:, :GLOBAL_TOKENS] = True
    return keep


class RandomBlocks(nn.Module):
    """BigBird on ``arange``, its random part looked up by block: [B, S, E] -> bool [S, S]."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("blocks", random_blocks())

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the mask."""
        position = torch.arange(hidden.shape[1])
        query, key = position[:, None], position[None, :]
        chosen = self.get_buffer("blocks")[query // BLOCK, key // BLOCK]
        return longformer(query, key) | chosen


class FromInput(nn.Module):
    """A mask computed from a further graph input: ``make(hidden, input)``."""

    def __init__(self, make: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, hidden: Tensor, given: Tensor) -> Tensor:
        """Return the mask."""
        return self.make(hidden, given)


def as_it_is(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the input itself."""
    return mask


def by_head(hidden: Tensor, mask_BSS: Tensor) -> Tensor:
    """[B, S, S] -> [B, 1, S, S]."""
    return mask_BSS.unsqueeze(1)


def key_padding(hidden: Tensor, keep_BS: Tensor) -> Tensor:
    """Bool or int [B, S], true where kept -> bool [B, 1, 1, S]."""
    return keep_BS[:, None, None, :].bool()


def inverted_padding(hidden: Tensor, keep_BS: Tensor) -> Tensor:
    """BERT's ``(1 - mask) * lowest``: int [B, S] -> float [B, 1, 1, S]."""
    return (1.0 - keep_BS[:, None, None, :].to(hidden.dtype)) * LOWEST


def causal_padding(hidden: Tensor, keep_BS: Tensor) -> Tensor:
    """Causal, and int [B, S] padding -> bool [B, 1, S, S]."""
    return table_here(causal, hidden) & keep_BS[:, None, None, :].bool()


def window_padding(hidden: Tensor, keep_BS: Tensor) -> Tensor:
    """A window, and int [B, S] padding -> bool [B, 1, S, S]."""
    return table_here(window, hidden) & keep_BS[:, None, None, :].bool()


def padding_both_ways(hidden: Tensor, keep_BS: Tensor) -> Tensor:
    """Query and key kept, or the diagonal: int [B, S] -> bool [B, 1, S, S]."""
    both = keep_BS[:, None, :, None].bool() & keep_BS[:, None, None, :].bool()
    return both | table_here(torch.eq, hidden)


def lengths(hidden: Tensor, lengths_B: Tensor) -> Tensor:
    """[B] -> bool [B, 1, 1, S]."""
    return (torch.arange(hidden.shape[1])[None, :] < lengths_B[:, None])[:, None, None, :]


def causal_lengths(hidden: Tensor, lengths_B: Tensor) -> Tensor:
    """[B] -> bool [B, 1, S, S]: causal, and only keys within the length."""
    position = torch.arange(hidden.shape[1])
    inside = position[None, None, None, :] < lengths_B[:, None, None, None]
    return inside & (position[None, :] <= position[:, None])


def prefix_lengths(hidden: Tensor, lengths_B: Tensor) -> Tensor:
    """Prefix-LM with the prefix's length as input [B] -> bool [B, 1, S, S]."""
    position = torch.arange(hidden.shape[1])
    in_prefix = position[None, None, None, :] < lengths_B[:, None, None, None]
    return in_prefix | (position[None, :] <= position[:, None])


def documents(hidden: Tensor, documents_BS: Tensor) -> Tensor:
    """Packed document ids [B, S] -> bool [B, 1, S, S]."""
    return documents_BS[:, None, :, None] == documents_BS[:, None, None, :]


def causal_documents(hidden: Tensor, documents_BS: Tensor) -> Tensor:
    """Packed document ids [B, S] -> bool [B, 1, S, S], causal."""
    same = documents_BS.unsqueeze(-1) == documents_BS.unsqueeze(-2)
    return (same & table_here(causal, hidden)).unsqueeze(1)


def window_documents(hidden: Tensor, documents_BS: Tensor) -> Tensor:
    """Packed document ids [B, S] -> bool [B, 1, S, S], in a window."""
    return documents(hidden, documents_BS) & table_here(window, hidden)


def documents_padding(hidden: Tensor, documents_BS: Tensor) -> Tensor:
    """Document ids with 0 for padding -> bool [B, 1, S, S]; padding sees the first token."""
    same = documents(hidden, documents_BS) & (documents_BS != 0)[:, None, None, :]
    return same | (torch.arange(hidden.shape[1]) == 0)


def documents_from_ends(hidden: Tensor, tokens_BS: Tensor) -> Tensor:
    """Documents end with a token: ids are the running count of ends before a token."""
    is_end = (tokens_BS == END_OF_DOCUMENT).to(torch.int64)
    return causal_documents(hidden, is_end.cumsum(-1) - is_end)


def documents_from_positions(hidden: Tensor, positions_BS: Tensor) -> Tensor:
    """Documents start where the position is 0."""
    return causal_documents(hidden, (positions_BS == 0).long().cumsum(dim=-1))


def table_here(predicate: Predicate, hidden: Tensor) -> Tensor:
    """Return the predicate on ``arange`` of the sequence, bool [S, S]."""
    position = torch.arange(hidden.shape[1], device=hidden.device)
    return predicate(position[:, None], position[None, :])
