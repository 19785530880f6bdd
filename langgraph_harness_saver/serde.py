"""The default serializer: LangGraph's bytes, read under a safe policy, with no string altered."""

from __future__ import annotations

import copy
import json
import logging
import pickle
from typing import TYPE_CHECKING, Any

import ormsgpack
from langgraph.checkpoint.serde import _msgpack as _policy
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from langgraph_harness_saver.errors import InvalidConfigError, SerializationError
from langgraph_harness_saver.packing import LosslessPacker, pack
from langgraph_harness_saver.unpacking import Reader

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = logging.getLogger(__name__)


class HarnessSerializer(JsonPlusSerializer):
    """Write as LangGraph does, losing no string; read back only what is safe to construct.

    `strict_msgpack` says what a load may construct:

    - `None`: LangGraph's safe types, the allow-listed, and plain data classes (pydantic models,
      dataclasses, named tuples, enums, attrs classes) of modules that the process has imported already.
      As `True` where `LANGGRAPH_STRICT_MSGPACK` is set.
    - `True`: LangGraph's safe types and the allow-listed.
    - `False`: whatever LangGraph's own serializer constructs by default, which is anything.

    A load that meets another type raises `UnsafeTypeError`. A value that cannot be written, or a
    permitted one that cannot be built from what is stored, raises `SerializationError`.
    """

    def __init__(
        self,
        *,
        strict_msgpack: bool | None = None,
        allowed_msgpack_modules: Iterable[tuple[str, ...] | type] = (),
        pickle_fallback: bool = False,
    ) -> None:
        if strict_msgpack is None and _policy.STRICT_MSGPACK_ENABLED:
            strict_msgpack = True
        allowed = [_allow_key(entry) for entry in allowed_msgpack_modules]
        super().__init__(
            pickle_fallback=pickle_fallback,
            allowed_msgpack_modules=True if strict_msgpack is False else allowed,
        )
        self._strict_msgpack = strict_msgpack

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        """Serialize to a type name and bytes; raise `SerializationError` for what cannot be."""
        if obj is None or isinstance(obj, bytes):
            return super().dumps_typed(obj)
        if isinstance(obj, bytearray):
            return "bytearray", bytes(obj)  # not the caller's own buffer, which may change
        try:
            return "msgpack", pack(obj)
        except (ormsgpack.MsgpackEncodeError, RecursionError):
            return self._dump_slowly(obj)

    def _dump_slowly(self, obj: Any) -> tuple[str, bytes]:
        try:
            return "msgpack", LosslessPacker().dump(obj)
        except SerializationError:
            if self.pickle_fallback:
                return "pickle", pickle.dumps(obj)
            raise

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Deserialize under the policy; raise `UnsafeTypeError` for a type that it does not permit."""
        type_, data_ = data
        allowed = self._allowed_msgpack_modules
        if allowed is True or type_ not in ("msgpack", "json"):
            return super().loads_typed(data)
        reader = Reader(allowed or frozenset(), plain=self._strict_msgpack is None)
        if type_ == "json":
            return json.loads(data_, object_hook=reader.revive_json)
        return reader.load(data_)


def allowlisted(serde: SerializerProtocol, extra: Iterable[tuple[str, ...] | type]) -> SerializerProtocol:
    """Derive the serializer that may also construct the types in `extra`, whatever wraps it.

    A wrapper that keeps its inner serializer in `.serde` is copied with the derived one. The same object
    comes back where nothing changes.
    """
    extra = tuple(extra)
    if isinstance(serde, JsonPlusSerializer):
        return serde.with_msgpack_allowlist(extra)
    inner = getattr(serde, "serde", None)
    if inner is serde or not isinstance(inner, SerializerProtocol):
        logger.debug("%s takes no msgpack allow-list", type(serde).__name__)
        return serde
    derived = allowlisted(inner, extra)
    return serde if derived is inner else _rewrapped(serde, derived)


def _rewrapped(wrapper: SerializerProtocol, inner: SerializerProtocol) -> SerializerProtocol:
    clone: Any = copy.copy(wrapper)
    try:
        clone.serde = inner
    except AttributeError:
        logger.debug("the inner serializer of %s cannot be replaced", type(wrapper).__name__)
        return wrapper
    return clone  # type: ignore[no-any-return]


def _allow_key(entry: tuple[str, ...] | type) -> tuple[str, ...]:
    if isinstance(entry, type):
        return (entry.__module__, entry.__name__)
    if isinstance(entry, str) or len(entry) != 2:
        raise InvalidConfigError(
            f'allowed_msgpack_modules takes types and ("module", "Name") pairs, not {entry!r}'
        )
    return tuple(entry)
