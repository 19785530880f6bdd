"""When two values are the same, and which parts of them belong together.

Values are compared strictly: `1`, `True` and `1.0` are three values, `(1,)` and `[1]` are two, while NaN is
NaN. Libraries for deep differences (deepdiff, dictdiffer) compare list items and keys by `==`, so they find
no difference between `[1, 2]` and `[True, 2]`; hence this module.
"""

from __future__ import annotations

import bisect
import dataclasses
import difflib
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import ormsgpack
from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from langgraph_harness_saver.difference import header_size
from langgraph_harness_saver.messages import FIELDS, PLAIN_OPTIONS
from langgraph_harness_saver.records import jsonable

StepKind: TypeAlias = Literal["key", "field", "member", "index", "message"]

DEEPEST = 100
"""Below so many levels a value is compared as a whole: Python's stack is not endless."""
_MOST_COMPARED = 250_000
"""Where more pairs than this would have to be looked at, difflib takes seconds."""


class Absent(Enum):
    """Stands where there is no value: None is one."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        """Return its name."""
        return self.name


ABSENT: Final = Absent.ABSENT


@dataclass(frozen=True, slots=True)
class Unresolved:
    """A channel's value that only its reducer can make: a seed and the writes that came after it.

    `seed_step` is the step of the checkpoint that holds the seed, if there is one. Two of them are taken for
    the same value only if they have the same `key`, such as the channel's version, and it isn't None: as many
    writes on a seed of the same step may still be other writes.
    """

    seed_step: int | None
    writes: int
    key: Hashable = None

    def __str__(self) -> str:
        """Return it as `seed + n writes`."""
        seed = "seed" if self.seed_step is None else f"seed (step {self.seed_step})"
        return f"{seed} + {self.writes} write{'' if self.writes == 1 else 's'}"


class Step(NamedTuple):
    """One step of the way into a value.

    `key` is a mapping's key, a field's name, a set's member or a message's id; `before` and `after` are where
    an item or a message stands in the two lists, None in one that doesn't hold it.
    """

    kind: StepKind
    key: Any = None
    before: int | None = None
    after: int | None = None

    @property
    def position(self) -> int | None:
        """Where it stands in the later list, or stood in the earlier one."""
        return self.before if self.after is None else self.after

    def __str__(self) -> str:
        """Return it as one would write it in Python; a set's member in braces."""
        if self.kind == "field":
            return f".{self.key}"
        if self.kind in ("index", "message"):
            return f"[{self.position}]"
        return f"{{{safe_repr(self.key)}}}" if self.kind == "member" else f"[{safe_repr(self.key)}]"

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        parts = {"kind": self.kind, "key": told(self.key), "before": self.before, "after": self.after}
        return {name: part for name, part in parts.items() if part is not None}


Path: TypeAlias = tuple[Step, ...]


# --- what is the same ----------------------------------------------------------------------------------


def same(a: Any, b: Any) -> bool:
    """Tell whether two values are the same: of the same types all through, NaN the same as NaN.

    Models, dataclasses and named tuples are compared by field, anything unknown by its own `==`, or by what
    pickle would take of it if it has none. Where that raises, the answer is no.
    """
    return a is b or fingerprint(a) == fingerprint(b) or token(a) == token(b)


def fingerprint(value: Any) -> Hashable:
    """Return something that two values have in common only if they are the same.

    The other way round `token` tells for sure: a mapping's order, which doesn't matter, shows in this.
    """
    try:
        return ormsgpack.packb(value, _by_field, _OPTIONS)
    except TypeError:
        # There is something else in it than plain data.
        return token(value)


def packed_items(items: Iterable[Any]) -> bytes | None:
    """Return a list's fingerprint without its length, so that what one list begins with is seen in its bytes.

    None if there is something else in it than plain data.
    """
    flat: list[Any] = []
    for item in items:
        kind = type(item)
        # LangChain's messages are most of what there is, and asking for the fields of each takes long.
        plain = kind in FIELDS and not item.__pydantic_extra__
        flat += (id(kind), item.__dict__) if plain else (0, item)
    try:
        packed = ormsgpack.packb(flat, _by_field, _OPTIONS)
    except TypeError:
        return None
    return packed[header_size(packed) :]


_OPTIONS = PLAIN_OPTIONS | ormsgpack.OPT_PASSTHROUGH_TUPLE
_TUPLE, _FIELDS = 1, 2


def _by_field(value: Any) -> ormsgpack.Ext:
    if type(value) is tuple:
        return ormsgpack.Ext(_TUPLE, ormsgpack.packb(list(value), _by_field, _OPTIONS))
    fields = _fields(value)
    if fields is None:
        raise TypeError
    kind = type(value)
    named = (f"{kind.__module__}.{kind.__qualname__}", id(kind), fields)
    return ormsgpack.Ext(_FIELDS, ormsgpack.packb(list(named), _by_field, _OPTIONS))


def token(value: Any) -> Hashable:
    """Return a hashable that two values have in common exactly if they are the same; see `same`."""
    return _token(value, ())


def _token(value: Any, above: tuple[int, ...]) -> Hashable:
    kind = type(value)
    if value is None or kind is str or kind is int:
        return value  # type: ignore[no-any-return]
    if kind is bool or kind is float:
        return kind, (value if value == value else "nan")
    if kind is bytes or kind is bytearray:
        return bytes, bytes(value)
    if id(value) in above:
        return Ellipsis, len(above) - above.index(id(value))
    if len(above) == DEEPEST:
        return _Opaque(value)
    return _token_inside(value, kind, (*above, id(value)))


def _token_inside(value: Any, kind: type, above: tuple[int, ...]) -> Hashable:
    fields = _fields(value)
    if fields is not None:
        return kind, frozenset((name, _token(item, above)) for name, item in fields.items())
    if isinstance(value, Mapping):
        pairs = ((_token(key, above), _token(item, above)) for key, item in value.items())
        return kind, len(value), frozenset(pairs)
    if isinstance(value, (list, tuple, deque)):
        return kind, tuple(_token(item, above) for item in value)
    if isinstance(value, Set):
        return kind, len(value), frozenset(_token(item, above) for item in value)
    return _Opaque(value)


def _fields(value: Any) -> dict[str, Any] | None:
    """Return the fields of a model, a dataclass, an attrs class or a named tuple; None of anything else."""
    kind = type(value)
    if kind is Unresolved:
        return None
    if isinstance(value, BaseModel):
        held = value.__dict__
        names = kind.model_fields
        # Cached properties live there, too.
        own = held if len(held) == len(names) else {name: held[name] for name in names if name in held}
        return {**own, **value.__pydantic_extra__} if value.__pydantic_extra__ else own
    if hasattr(kind, "__dataclass_fields__"):
        return {field.name: getattr(value, field.name, ABSENT) for field in dataclasses.fields(value)}
    if hasattr(kind, "__attrs_attrs__"):
        return {field.name: getattr(value, field.name, ABSENT) for field in kind.__attrs_attrs__}
    if isinstance(value, tuple) and hasattr(kind, "_fields"):
        return dict(zip(kind._fields, value, strict=True))
    return None


class _Opaque:
    """Any other object, which is the same as another one if it says so itself."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Opaque) and _verdict(self.value, other.value) is True

    def __hash__(self) -> int:
        kind = type(self.value)
        try:
            # What isn't equal to itself, as NaN, has a hash of its own each time.
            if _has_equality(self.value) and self.value == self.value:
                return hash((kind, self.value))
        except Exception:
            # Whatever its own code does: one hash for the whole type is slower, and never wrong.
            return hash(kind)
        return hash(kind)

    def __repr__(self) -> str:
        return safe_repr(self.value)


def _verdict(a: Any, b: Any) -> bool | Exception:
    """Tell whether two objects say that they are equal, or what they raised instead."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, Unresolved):
        return a.key is not None and _verdict(a.key, b.key) is True
    try:
        return _equal(a, b)
    except Exception as error:
        # It is told with the difference, and is none that the caller could mend.
        return error


def why_not_compared(a: Any, b: Any) -> str | None:
    """Return what two objects raised when they were compared; None if they could be."""
    verdict = type(a) is type(b) and isinstance(token(a), _Opaque) and _verdict(a, b)
    return f"can't be compared: {safe_repr(verdict)}" if isinstance(verdict, Exception) else None


def _has_equality(value: Any) -> bool:
    return isinstance(value, type) or any("__eq__" in vars(kind) for kind in type(value).__mro__[:-1])


def _equal(a: Any, b: Any) -> bool:
    if not _has_equality(a):
        # Each reading of a checkpoint makes another object of the same state.
        return same(a.__reduce_ex__(2), b.__reduce_ex__(2))
    if hasattr(a, "shape"):
        return _equal_arrays(a, b)
    return bool(a == b) or bool(a != a and b != b and repr(a) == repr(b))


def _equal_arrays(a: Any, b: Any) -> bool:
    """Compare what numpy, pandas, polars or torch hold, without importing any of them."""
    if hasattr(a, "equals"):
        return bool(a.equals(b))
    if a.shape != b.shape or getattr(a, "dtype", None) != getattr(b, "dtype", None):
        return False
    return bool(((a == b) | ((a != a) & (b != b))).all())


# --- what belongs together -----------------------------------------------------------------------------


def entries(value: Any) -> dict[Hashable, tuple[Step, Any]] | None:
    """Return what a mapping, a set or an object with fields holds, by what names it.

    None of anything else, and of a mapping that has a key twice, as only NaN can be.
    """
    fields = _fields(value)
    if fields is not None:
        return {name: (Step("field", name), item) for name, item in fields.items()}
    if isinstance(value, Mapping):
        found = {token(key): (Step("key", key), item) for key, item in value.items()}
        return found if len(found) == len(value) else None
    if isinstance(value, Set):
        return {token(item): (Step("member", item), item) for item in sorted(value, key=safe_repr)}
    return None


def is_message(value: Any) -> bool:
    """Tell whether this is a message of LangChain's, or a dict that holds one."""
    if isinstance(value, BaseMessage):
        return True
    return isinstance(value, dict) and "role" in value and ("content" in value or "tool_calls" in value)


def are_messages(before: Any, after: Any) -> bool:
    """Tell whether two lists hold messages and nothing else, at least one between them."""
    if not (isinstance(before, list) and isinstance(after, list) and (before or after)):
        return False
    return all(map(is_message, before)) and all(map(is_message, after))


def message_id(message: Any) -> Any:
    """Return a message's id, or None."""
    return message.id if isinstance(message, BaseMessage) else message.get("id")


def match_items(before: Sequence[Hashable], after: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Return which items of two lists belong together, given their fingerprints.

    Equal items do where their order stayed; between these, items that take the same place in a stretch.
    """
    pairs: list[tuple[int, int]] = []
    for stretch in stretches(align(before, after), len(before), len(after)):
        differing = min(stretch.equal_before - stretch.before, stretch.equal_after - stretch.after)
        equal = stretch.end_before - stretch.equal_before
        pairs += ((stretch.before + n, stretch.after + n) for n in range(differing))
        pairs += ((stretch.equal_before + n, stretch.equal_after + n) for n in range(equal))
    return pairs


def match_messages(before: Sequence[Any], after: Sequence[Any]) -> list[tuple[int, int]]:
    """Return which messages of two lists are the same one.

    Those that have ids by their ids, wherever they stand. Those without by what they say, or else where one
    of the same role stands in the same place; a message that was given an id is found by what it says.
    """
    places = {key: index for index, key in enumerate(_message_keys(before)) if key is not None}
    keys = list(_message_keys(after))
    pairs = [(places.pop(key), index) for index, key in enumerate(keys) if key in places]
    old, new = ({pair[side] for pair in pairs} for side in (0, 1))
    left = [index for index in range(len(before)) if index not in old]
    came = [index for index in range(len(after)) if index not in new]
    if left and came:
        pairs += [
            (left[i], came[j]) for i, j in _match_bare([before[i] for i in left], [after[j] for j in came])
        ]
    return sorted(pairs)


def _message_keys(messages: Iterable[Any]) -> Iterator[Hashable]:
    """Yield each message's id and how often it came before: `operator.add` as a reducer may repeat one."""
    seen: Counter[Hashable] = Counter()
    for message in messages:
        id_ = message_id(message)
        if id_ is None:
            yield None
            continue
        key = token(id_)
        yield key, seen[key]
        seen[key] += 1


def _match_bare(before: Sequence[Any], after: Sequence[Any]) -> Iterator[tuple[int, int]]:
    for i, j in match_items([*map(_said, before)], [*map(_said, after)]):
        ids = (message_id(before[i]), message_id(after[j]))
        if ids == (None, None):
            if role_of(before[i]) == role_of(after[j]):
                yield i, j
        elif None in ids and same(_without_id(before[i]), _without_id(after[j])):
            yield i, j


def _said(message: Any) -> Hashable:
    return fingerprint(_without_id(message))


def _without_id(message: Any) -> tuple[Any, dict[str, Any]]:
    fields = _fields(message)
    return role_of(message), {**(message if fields is None else fields), "id": None}


def content_of(message: Any) -> Any:
    """Return what a message says: text, blocks, or None."""
    return message.content if isinstance(message, BaseMessage) else message.get("content")


def role_of(message: Any) -> str:
    """Return who says it: a LangChain message's type, a dict's role."""
    return str(message.type if isinstance(message, BaseMessage) else message["role"])


def align(before: Sequence[Hashable], after: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Return pairs of equal items, in order in both lists; the same ones whichever list comes first."""
    shorter = min(len(before), len(after))
    start = 0
    while start < shorter and before[start] == after[start]:
        start += 1
    tail = 0
    while tail < shorter - start and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    middle = _align_middle(before[start : len(before) - tail], after[start : len(after) - tail])
    return [
        *((i, i) for i in range(start)),
        *((start + i, start + j) for i, j in middle),
        *((len(before) - n, len(after) - n) for n in range(tail, 0, -1)),
    ]


def _align_middle(before: Sequence[Hashable], after: Sequence[Hashable]) -> list[tuple[int, int]]:
    if not before or not after:
        return []
    if len(after) < len(before) or (len(after) == len(before) and repr(after[0]) < repr(before[0])):
        # Neither of the two ways comes out the same from both sides.
        return [(i, j) for j, i in _align_middle_one_way(after, before)]
    return _align_middle_one_way(before, after)


def _align_middle_one_way(before: Sequence[Hashable], after: Sequence[Hashable]) -> list[tuple[int, int]]:
    numbers: dict[Hashable, int] = {}
    a, b = ([numbers.setdefault(item, len(numbers)) for item in items] for items in (before, after))
    if len(a) * len(b) <= _MOST_COMPARED:
        blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
        return [(block.a + n, block.b + n) for block in blocks for n in range(block.size)]
    places: dict[int, deque[int]] = {}
    for index, number in enumerate(b):
        places.setdefault(number, deque()).append(index)
    pairs = [(index, places[number].popleft()) for index, number in enumerate(a) if places.get(number)]
    return in_order(pairs)


def in_order(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return as many of the pairs, sorted by their first numbers, as are sorted by their second ones, too."""
    ends: list[int] = []
    last: list[int] = []
    previous: list[int | None] = []
    for index, (_, j) in enumerate(pairs):
        length = bisect.bisect_left(ends, j)
        previous.append(last[length - 1] if length else None)
        ends[length : length + 1] = [j]
        last[length : length + 1] = [index]
    kept: list[tuple[int, int]] = []
    at = last[-1] if last else None
    while at is not None:
        kept.append(pairs[at])
        at = previous[at]
    return kept[::-1]


class Stretch(NamedTuple):
    """What differs from `before` and `after` on, then what is equal, up to `end_before` and `end_after`."""

    before: int
    after: int
    equal_before: int
    equal_after: int
    end_before: int
    end_after: int


def stretches(pairs: Sequence[tuple[int, int]], len_before: int, len_after: int) -> Iterator[Stretch]:
    """Divide two lists by the pairs that `align` found; the last stretch has nothing equal at its end."""
    at = (0, 0)
    index = 0
    while index < len(pairs):
        i, j = pairs[index]
        size = 1
        while index + size < len(pairs) and pairs[index + size] == (i + size, j + size):
            size += 1
        yield Stretch(*at, i, j, i + size, j + size)
        at = (i + size, j + size)
        index += size
    yield Stretch(*at, len_before, len_after, len_before, len_after)


def kept_in_order(
    pairs: list[tuple[int, int]], before: Sequence[Any], after: Sequence[Any]
) -> set[tuple[int, int]]:
    """Return the pairs that needn't be moved: the same ones from both sides."""
    by_after = sorted(pairs, key=lambda pair: pair[1])
    if by_after == pairs:
        return set(pairs)

    def names(some: Iterable[tuple[int, int]]) -> list[list[str]]:
        both = ((before[i], after[j]) for i, j in some)
        return [sorted(repr((message_id(message), _said(message))) for message in pair) for pair in both]

    if names(pairs) <= names(by_after):
        return set(in_order(pairs))
    return {(i, j) for j, i in in_order([(j, i) for i, j in by_after])}


def placed(
    pairs: Sequence[tuple[int, int]], len_before: int, len_after: int
) -> list[tuple[int | None, int | None]]:
    """Return the pairs, and what has no partner, by where it stands or stood."""
    old, new = dict(pairs), {j: i for i, j in pairs}
    there = [(j, 1, new.get(j), j) for j in range(len_after)]
    gone = [(i, 0, i, None) for i in range(len_before) if i not in old]
    return [(i, j) for _, _, i, j in sorted([*there, *gone], key=lambda place: place[:2])]


# --- how values are told -------------------------------------------------------------------------------


def told(value: Any) -> Any:
    """Return a value as JSON can hold it; what not even `repr` can tell by its type."""
    if isinstance(value, Unresolved):
        return {"unresolved": str(value), "seed_step": value.seed_step, "writes": value.writes}
    try:
        return jsonable(value)
    except Exception:
        return safe_repr(value)


def safe_repr(value: Any) -> str:
    """Return a value's `repr`, or its type where that raises."""
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__module__}.{type(value).__qualname__} object>"


def path_text(path: Path) -> str:
    """Return the way into a value as one would write it in Python."""
    return "".join(map(str, path))
