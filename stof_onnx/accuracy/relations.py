"""How the lengths among a model's inputs may depend on each other.

A decoder with a KV cache takes a mask of ``past + new`` positions, but its file names three
independent dimensions. Which of them is the sum is guessed here, best guess first, and the model
itself decides: :mod:`stof_onnx.accuracy.search` runs it.

What a dimension counts follows from the inputs it is in, more reliably than from its name: token
ids have the new positions, a mask all of them, pairs of inputs of rank 4 the cached ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from stof_onnx.accuracy.domains import InputDomain
from stof_onnx.accuracy.shapes import Relation, SymbolicShapes

Role = Literal["new", "past", "total"]
Relations = tuple[Relation, ...]

# What the names of dimensions tell where the inputs leave several sums equally likely.
_WORDS: Mapping[Role, tuple[str, ...]] = {
    "new": ("seq", "new", "query", "tgt", "decoder"),
    "past": ("past", "cache", "prev", "history"),
    "total": ("total", "full", "all", "kv", "mask"),
}
# A cache that is written into has room for more than the new positions; by how much is free.
_ROOM = 9
# More guesses than these are not worth their runs.
_MOST_SUMS = 40
_MOST_PAIRS = 40


@dataclass(frozen=True)
class Guess:
    """What may hold among lengths.

    Attributes:
        relations: hold together, in an order in which they can be computed.
        follows_cache: whether new positions come after the cached ones, rather than being
            written among them.
    """

    relations: tuple[Relation, ...] = ()
    follows_cache: bool = True


@dataclass(frozen=True)
class Lengths:
    """The dimensions of a model's inputs that count positions.

    Attributes:
        free: names of those that may be chosen, in the inputs' order.
        roles: what each counts; names that the user fixed, and numbers that are fixed in the
            model, are here too.
        caches: input and axis of each length of a KV cache that no mask bounds on its own.
    """

    free: tuple[str, ...]
    roles: Mapping[int | str, Role]
    caches: tuple[tuple[str, int], ...]

    def of(self, role: Role) -> tuple[str, ...]:
        """The free lengths of a role."""
        return tuple(name for name in self.free if self.roles[name] == role)


def find_lengths(symbolic: SymbolicShapes, domains: Mapping[str, InputDomain]) -> Lengths:
    """Collect the lengths of a model's inputs.

    Args:
        symbolic: the shapes of the inputs.
        domains: the values of the inputs.
    """
    roles: dict[int | str, Role] = {}
    alike: dict[str, list[tuple[str, int]]] = {}
    masked: set[str] = set()
    for source, dims in symbolic.dims().items():
        for axis, dim in enumerate(dims):
            if isinstance(dim, str) and (symbolic.is_batch(dim) or symbolic.is_expression(dim)):
                continue
            role = _role(domains[source], axis, len(dims))
            if role is None or (isinstance(dim, int) and not _may_be_length(role, axis, len(dims))):
                continue
            roles[dim] = _stronger(role, roles.get(dim))
            if isinstance(dim, str) and role == "past":
                alike.setdefault(dim, []).append((source, axis))
            if isinstance(dim, str) and role == "total" and len(dims) == 2:
                masked.add(dim)
    free = tuple(name for name in symbolic.free if name in roles)
    several = sum(len(places) for places in alike.values()) > 1
    caches = tuple(
        place
        for name, places in alike.items()
        if several and name not in masked and roles[name] == "past"
        for place in places
    )
    return Lengths(free, roles, caches)


def _role(domain: InputDomain, axis: int, rank: int) -> Role | None:
    if axis == 0 and rank > 1:
        return None
    if domain.kind in ("mask", "additive_mask"):
        if axis == rank - 1:
            return "total"
        return "new" if axis == rank - 2 else None
    return "past" if domain.kind == "real" and rank >= 4 else "new"


def _may_be_length(role: Role, axis: int, rank: int) -> bool:
    """Whether a number in the model may be a length, rather than a count of heads or features."""
    return role == "total" or rank < 3 or axis == rank - 2


def _stronger(role: Role, other: Role | None) -> Role:
    order: tuple[Role, ...] = ("new", "past", "total")
    return role if other is None else min(role, other, key=order.index)


def guesses(lengths: Lengths) -> Iterator[Guess]:
    """What may hold among lengths, the plausible first: that nothing does comes before all.

    Equal lengths come after what a cache calls for: some models run with a cache, a mask and
    new positions of one length, but do so in no use of theirs.
    """
    merged, same = _merged(lengths)
    yield Guess()
    likely = dict.fromkeys(
        (relation, *rest)
        for group, rest in ((lengths, ()), (merged, same))
        for relation in _sums(group)
        if _surprise(relation, lengths.roles) <= 0
    )
    yield from map(Guess, likely)
    if lengths.of("past"):
        yield from (Guess(relations, follows_cache=False) for relations in _rooms(merged, same))
    others = dict.fromkeys(_others(lengths, merged, same))
    yield from (Guess(relations) for relations in others if relations not in likely)


def _others(lengths: Lengths, merged: Lengths, same: Relations) -> Iterator[Relations]:
    free = lengths.free
    if len(free) > 1:
        yield _equal(free)
    yield from ((relation,) for relation in _sums(lengths))
    if same:
        yield same
        # First what the others are equal to.
        yield from ((relation, *same) for relation in _sums(merged))
    equalities = [_equal(pair)[0] for pair in itertools.combinations(free, 2)]
    yield from ((equality,) for equality in equalities)
    pairs = (
        (relation, equality)
        for relation in _sums(lengths)
        for equality in equalities
        if _can_follow(equality, relation)
    )
    yield from itertools.islice(pairs, _MOST_PAIRS)


def _equal(names: tuple[str, ...]) -> Relations:
    return tuple(Relation(name, (names[0],)) for name in names[1:])


def _merged(lengths: Lengths) -> tuple[Lengths, Relations]:
    """One length for each role, and the relations that make it so."""
    roles: tuple[Role, ...] = ("new", "past", "total")
    groups = [group for role in roles if (group := lengths.of(role))]
    first = {group[0] for group in groups}
    kept = {
        name: role
        for name, role in lengths.roles.items()
        if name in first or name not in lengths.free
    }
    same = tuple(relation for group in groups for relation in _equal(group))
    return Lengths(tuple(name for name in lengths.free if name in first), kept, ()), same


def _can_follow(equality: Relation, relation: Relation) -> bool:
    """Whether ``equality`` computes something that ``relation`` neither computes nor uses."""
    return equality.target not in (relation.target, *relation.plus, *relation.minus)


def _sums(lengths: Lengths) -> list[Relation]:
    """Each way in which one length may be the sum of two others."""
    items = list(lengths.roles)
    relations = (
        _solved(total, first, second, lengths)
        for total in items
        for first, second in itertools.combinations([i for i in items if i != total], 2)
    )
    found = [relation for relation in relations if relation is not None]
    found.sort(key=lambda relation: _surprise(relation, lengths.roles))
    return found[:_MOST_SUMS]


def _solved(
    total: int | str, first: int | str, second: int | str, lengths: Lengths
) -> Relation | None:
    """``total = first + second``, solved for one that is free."""
    if isinstance(total, str) and total in lengths.free:
        # As people write it: past before new, numbers last.
        swap = isinstance(first, int) or (
            isinstance(second, str) and lengths.roles[second] == "past" != lengths.roles[first]
        )
        return Relation(total, (second, first) if swap else (first, second))
    for term, other in ((first, second), (second, first)):
        if isinstance(term, str) and term in lengths.free and isinstance(other, str):
            return Relation(term, (total,), (other,))
    return None


def _surprise(relation: Relation, roles: Mapping[int | str, Role]) -> int:
    """How unlikely a sum is: roles count most, names decide among equals.

    A sum of past and new positions that makes up a total has at most 0.
    """
    total: int | str = relation.target
    first, second = (*relation.plus, *relation.minus)
    if relation.minus:
        total, first = first, total
    terms = (roles[first], roles[second])
    score = 10 * (roles[total] != "total") + 10 * ("past" not in terms) + 10 * ("new" not in terms)
    score -= _named(total, "total")
    score -= max(
        _named(first, "past") + _named(second, "new"), _named(second, "past") + _named(first, "new")
    )
    return score


def _named(item: int | str, role: Role) -> int:
    return int(isinstance(item, str) and any(word in item.lower() for word in _WORDS[role]))


def _rooms(lengths: Lengths, same: Relations) -> Iterator[Relations]:
    """A cache, or a mask over it, that has room for the new positions and more."""
    new = lengths.of("new")
    for name in (*lengths.of("past"), *lengths.of("total")):
        others = tuple(
            Relation(other, (name,))
            for other in (*lengths.of("past"), *lengths.of("total"))
            if other != name
        )
        for rest in dict.fromkeys((others, ())):
            yield from ((Relation(name, (term, _ROOM)), *rest, *same) for term in new)
