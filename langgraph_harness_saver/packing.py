"""Values as LangGraph's msgpack: the bytes that it writes itself, but with no string altered.

A lone surrogate, which LangGraph replaces by `?`, is written as a call of `str(bytes, "utf-8",
"surrogatepass")`, a dict with such keys as `dict(pairs)`: its own serializer can read those too.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import sys
from collections import deque
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import ormsgpack
from langgraph.checkpoint.serde import jsonplus as _stock
from langgraph.checkpoint.serde.types import SendProtocol, _DeltaSnapshot
from langgraph.store.base import Item

from langgraph_harness_saver.errors import SerializationError
from langgraph_harness_saver.messages import FIELDS, PLAIN_OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable

# LangGraph's options but OPT_REPLACE_SURROGATES, so that a surrogate is an error and not a "?".
_PACK_OPTIONS = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
)

ARG, ARGS, KWARGS, METHOD = (
    _stock.EXT_CONSTRUCTOR_SINGLE_ARG,
    _stock.EXT_CONSTRUCTOR_POS_ARGS,
    _stock.EXT_CONSTRUCTOR_KW_ARGS,
    _stock.EXT_METHOD_SINGLE_ARG,
)
MODEL_V1, MODEL, ARRAY, DELTA = (
    _stock.EXT_PYDANTIC_V1,
    _stock.EXT_PYDANTIC_V2,
    _stock.EXT_NUMPY_ARRAY,
    _stock.EXT_DELTA_SNAPSHOT,
)

SURROGATES = ("utf-8", "surrogatepass")


def pack(value: Any) -> bytes:
    """Give a value's msgpack; raise what ormsgpack raises for strings with lone surrogates, too."""
    return ormsgpack.packb(value, default=_default, option=_PACK_OPTIONS)


def _default(obj: Any) -> Any:
    cls = type(obj)
    if cls in FIELDS and len(fields := obj.__dict__) == FIELDS[cls] and not obj.__pydantic_extra__:
        try:
            data = ormsgpack.packb(fields, None, PLAIN_OPTIONS)
            return ormsgpack.Ext(MODEL, _MESSAGE_HEADS[cls] + data + _MESSAGE_END)
        except ormsgpack.MsgpackEncodeError:
            pass
    code, payload = _described(obj)
    return payload if code is None else ormsgpack.Ext(code, pack(payload))


def _message_head(cls: type) -> bytes:
    # Four items follow: module, name, fields, method.
    return b"\x94" + pack(cls.__module__) + pack(cls.__name__)


_MESSAGE_HEADS = {cls: _message_head(cls) for cls in FIELDS}
_MESSAGE_END = pack("model_validate_json")


class LosslessPacker:
    """Packs one value that `pack` refused: with its lone surrogates, or to find out why not.

    Remembers the first error, because ormsgpack reports its own in place of one raised in `default`.
    """

    def __init__(self) -> None:
        self._failed: tuple[Any, Exception] | None = None

    def dump(self, value: Any) -> bytes:
        try:
            return self._pack(value)
        except Exception as error:
            culprit, cause = self._failed or (value, error)
            reason = "it is nested too deeply" if isinstance(cause, RecursionError) else cause
            raise SerializationError(f"cannot write a {_type_name(culprit)}: {reason}") from cause

    def _pack(self, value: Any) -> bytes:
        return self._pack_escaped(self._escape(value))

    def _pack_escaped(self, value: Any) -> bytes:
        return ormsgpack.packb(value, default=self._default, option=_PACK_OPTIONS)

    def _default(self, obj: Any) -> Any:
        try:
            code, payload = _described(obj)
            return self._escape(payload) if code is None else ormsgpack.Ext(code, self._pack(payload))
        except Exception as error:
            self._failed = self._failed or (obj, error)
            raise

    def _escape(self, value: Any) -> Any:
        if isinstance(value, Enum):  # an Enum may be a str too, but goes through `default`
            return value
        if isinstance(value, str):
            return self._escape_str(value) if _has_surrogate(value) else value
        if isinstance(value, list) or type(value) is tuple:
            return [self._escape(item) for item in value]
        if isinstance(value, dict):
            return self._escape_dict(value)
        return value

    def _escape_str(self, value: str) -> ormsgpack.Ext:
        return self._call("str", (value.encode("utf-8", "surrogatepass"), *SURROGATES))

    def _escape_dict(self, value: dict[Any, Any]) -> Any:
        if not any(map(_has_surrogate, value)):
            return {key: self._escape(item) for key, item in value.items()}
        return self._call("dict", ([[self._escape_key(key), self._escape(value[key])] for key in value],))

    def _escape_key(self, key: Any) -> Any:
        if isinstance(key, Enum):
            key = key.value
        if isinstance(key, str):
            return self._escape(key)
        if type(key) is tuple:
            return self._call("tuple", ([self._escape_key(item) for item in key],))
        # ormsgpack writes a date, say, as a string when it is a key: so must a pair.
        return next(iter(ormsgpack.unpackb(pack({key: None}), option=ormsgpack.OPT_NON_STR_KEYS)))

    def _call(self, name: str, args: tuple[Any, ...]) -> ormsgpack.Ext:
        return ormsgpack.Ext(ARGS, self._pack_escaped(("builtins", name, args)))


def _has_surrogate(value: Any) -> bool:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, tuple):
        return any(map(_has_surrogate, value))
    if not isinstance(value, str) or value.isascii():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _type_name(value: Any) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


_TIME_FIELDS = ("hour", "minute", "second", "microsecond", "tzinfo", "fold")
# Tried in this order after the duck-typed kinds: for each, the ext code and the constructor's argument.
_STDLIB: tuple[tuple[Any, int, Callable[[Any], Any]], ...] = (
    (pathlib.Path, ARGS, lambda obj: obj.parts),
    (UUID, ARG, lambda obj: obj.hex),
    (Decimal, ARG, str),
    ((set, frozenset, deque), ARG, tuple),
    ((IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network), ARG, str),
    (timedelta, ARGS, lambda obj: (obj.days, obj.seconds, obj.microseconds)),
    (date, ARGS, lambda obj: (obj.year, obj.month, obj.day)),
    (time, KWARGS, lambda obj: {name: getattr(obj, name) for name in _TIME_FIELDS}),
    (timezone, ARGS, lambda obj: obj.__getinitargs__()),
    (ZoneInfo, ARG, lambda obj: obj.key),
    (Enum, ARG, lambda obj: obj.value),
)


def _described(obj: Any) -> tuple[int | None, Any]:
    """Give the ext code and the payload that LangGraph writes for `obj`, or None and plain data."""
    cls = obj.__class__
    module, name = cls.__module__, cls.__name__
    if isinstance(obj, _DeltaSnapshot):
        return DELTA, obj.value
    if _can(obj, "model_dump"):
        return MODEL, (module, name, obj.model_dump(), "model_validate_json")
    if _can(obj, "get_secret_value"):
        return ARG, (module, name, obj.get_secret_value())
    if _can(obj, "dict"):
        return MODEL_V1, (module, name, obj.dict())
    if _can(obj, "_asdict"):
        return KWARGS, (module, name, obj._asdict())
    if isinstance(obj, re.Pattern):
        return ARGS, ("re", "compile", (obj.pattern, obj.flags))
    if isinstance(obj, datetime):
        return METHOD, (module, name, obj.isoformat(), "fromisoformat")
    for kind, code, argument in _STDLIB:
        if isinstance(obj, kind):
            return code, (module, name, argument(obj))
    return _described_object(obj, module, name)


def _described_object(obj: Any, module: str, name: str) -> tuple[int | None, Any]:
    if isinstance(obj, SendProtocol):
        timeout = getattr(obj, "timeout", None)
        args = (obj.node, obj.arg) if timeout is None else (obj.node, obj.arg, timeout)
        return ARGS, (module, name, args)
    if dataclasses.is_dataclass(obj):
        return KWARGS, (module, name, {f.name: getattr(obj, f.name) for f in dataclasses.fields(obj)})
    if isinstance(obj, Item):
        return KWARGS, (module, name, {slot: getattr(obj, slot) for slot in obj.__slots__})
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(obj, numpy.ndarray):
        return ARRAY, _described_array(obj)
    if isinstance(obj, BaseException):
        return None, repr(obj)
    raise TypeError("no type that LangGraph's serializer writes")


def _described_array(array: Any) -> tuple[Any, ...]:
    if array.dtype.hasobject:
        raise TypeError("an array of objects holds pointers, not values; convert it to a list")
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    return array.dtype.str, array.shape, order, array.tobytes(order="A")


def _can(obj: Any, method: str) -> bool:
    return callable(getattr(obj, method, None))
