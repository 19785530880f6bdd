"""The default serializer: LangGraph's bytes, read under a safe policy, with no string altered.

What it writes is what `JsonPlusSerializer` writes, byte for byte, except where that one would replace a
lone surrogate by `?`. Such a string is written as a call of `str(bytes, "utf-8", "surrogatepass")`, a
dict with such keys as `dict(pairs)`: LangGraph's own serializer can read those too.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib
import json
import logging
import pathlib
import pickle
import re
import sys
from collections import deque
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, EnumMeta
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from types import GenericAlias
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

import ormsgpack
from langchain_core.load.load import ALL_SERIALIZABLE_MAPPINGS
from langgraph.checkpoint.serde import _msgpack as _policy
from langgraph.checkpoint.serde import jsonplus as _stock
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.event_hooks import emit_serde_event
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import SendProtocol, _DeltaSnapshot
from langgraph.store.base import Item
from pydantic import BaseModel, Secret, SecretBytes, SecretStr
from pydantic.version import version_short

from langgraph_harness_saver.errors import InvalidConfigError, SerializationError, UnsafeTypeError
from langgraph_harness_saver.messages import FIELDS, NAMES, PLAIN_OPTIONS, restored

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

logger = logging.getLogger(__name__)

# LangGraph's options but OPT_REPLACE_SURROGATES, so that a surrogate is an error and not a "?".
_PACK_OPTIONS = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
_ARG, _ARGS, _KWARGS, _METHOD = (
    _stock.EXT_CONSTRUCTOR_SINGLE_ARG,
    _stock.EXT_CONSTRUCTOR_POS_ARGS,
    _stock.EXT_CONSTRUCTOR_KW_ARGS,
    _stock.EXT_METHOD_SINGLE_ARG,
)
_MODEL_V1, _MODEL, _ARRAY, _DELTA = (
    _stock.EXT_PYDANTIC_V1,
    _stock.EXT_PYDANTIC_V2,
    _stock.EXT_NUMPY_ARRAY,
    _stock.EXT_DELTA_SNAPSHOT,
)

# A dump holds field names, never aliases; before 2.11 pydantic cannot be told so at run time.
_BY_NAME = tuple(map(int, version_short().split("."))) >= (2, 11)

# Python 3.13 alone names pathlib's classes so.
_MOVED = {"pathlib._local": "pathlib"}


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
            return "msgpack", _pack(obj)
        except (ormsgpack.MsgpackEncodeError, RecursionError):
            return self._dump_slowly(obj)

    def _dump_slowly(self, obj: Any) -> tuple[str, bytes]:
        try:
            return "msgpack", _LosslessPacker().dump(obj)
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
        reader = _Reader(allowed or frozenset(), plain=self._strict_msgpack is None)
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


# --- writing -------------------------------------------------------------------------------------------


def _pack(value: Any) -> bytes:
    return ormsgpack.packb(value, default=_default, option=_PACK_OPTIONS)


def _default(obj: Any) -> Any:
    cls = type(obj)
    if cls in FIELDS and len(fields := obj.__dict__) == FIELDS[cls] and not obj.__pydantic_extra__:
        try:
            data = ormsgpack.packb(fields, None, PLAIN_OPTIONS)
            return ormsgpack.Ext(_MODEL, _MESSAGE_HEADS[cls] + data + _MESSAGE_END)
        except ormsgpack.MsgpackEncodeError:
            pass
    code, payload = _described(obj)
    return payload if code is None else ormsgpack.Ext(code, _pack(payload))


def _message_head(cls: type) -> bytes:
    # Four items follow: module, name, fields, method.
    return b"\x94" + _pack(cls.__module__) + _pack(cls.__name__)


_MESSAGE_HEADS = {cls: _message_head(cls) for cls in FIELDS}
_MESSAGE_END = _pack("model_validate_json")


class _LosslessPacker:
    """Packs one value that `_pack` refused: with its lone surrogates, or to find out why not.

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
        return self._call("str", (value.encode("utf-8", "surrogatepass"), *_SURROGATES))

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
        return next(iter(ormsgpack.unpackb(_pack({key: None}), option=ormsgpack.OPT_NON_STR_KEYS)))

    def _call(self, name: str, args: tuple[Any, ...]) -> ormsgpack.Ext:
        return ormsgpack.Ext(_ARGS, self._pack_escaped(("builtins", name, args)))


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
    (pathlib.Path, _ARGS, lambda obj: obj.parts),
    (UUID, _ARG, lambda obj: obj.hex),
    (Decimal, _ARG, str),
    ((set, frozenset, deque), _ARG, tuple),
    ((IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network), _ARG, str),
    (timedelta, _ARGS, lambda obj: (obj.days, obj.seconds, obj.microseconds)),
    (date, _ARGS, lambda obj: (obj.year, obj.month, obj.day)),
    (time, _KWARGS, lambda obj: {name: getattr(obj, name) for name in _TIME_FIELDS}),
    (timezone, _ARGS, lambda obj: obj.__getinitargs__()),
    (ZoneInfo, _ARG, lambda obj: obj.key),
    (Enum, _ARG, lambda obj: obj.value),
)


def _described(obj: Any) -> tuple[int | None, Any]:
    """Give the ext code and the payload that LangGraph writes for `obj`, or None and plain data."""
    cls = obj.__class__
    module, name = cls.__module__, cls.__name__
    if isinstance(obj, _DeltaSnapshot):
        return _DELTA, obj.value
    if _can(obj, "model_dump"):
        return _MODEL, (module, name, obj.model_dump(), "model_validate_json")
    if _can(obj, "get_secret_value"):
        return _ARG, (module, name, obj.get_secret_value())
    if _can(obj, "dict"):
        return _MODEL_V1, (module, name, obj.dict())
    if _can(obj, "_asdict"):
        return _KWARGS, (module, name, obj._asdict())
    if isinstance(obj, re.Pattern):
        return _ARGS, ("re", "compile", (obj.pattern, obj.flags))
    if isinstance(obj, datetime):
        return _METHOD, (module, name, obj.isoformat(), "fromisoformat")
    for kind, code, argument in _STDLIB:
        if isinstance(obj, kind):
            return code, (module, name, argument(obj))
    return _described_object(obj, module, name)


def _described_object(obj: Any, module: str, name: str) -> tuple[int | None, Any]:
    if isinstance(obj, SendProtocol):
        timeout = getattr(obj, "timeout", None)
        args = (obj.node, obj.arg) if timeout is None else (obj.node, obj.arg, timeout)
        return _ARGS, (module, name, args)
    if dataclasses.is_dataclass(obj):
        return _KWARGS, (module, name, {f.name: getattr(obj, f.name) for f in dataclasses.fields(obj)})
    if isinstance(obj, Item):
        return _KWARGS, (module, name, {slot: getattr(obj, slot) for slot in obj.__slots__})
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(obj, numpy.ndarray):
        return _ARRAY, _described_array(obj)
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


# --- reading -------------------------------------------------------------------------------------------


class _Reader:
    """Reads one value under the policy.

    Remembers the first error, because ormsgpack reports "ext_hook failed" in place of what a hook raises.
    """

    __slots__ = ("_allowed", "_failed", "_plain")

    def __init__(self, allowed: Collection[tuple[str, ...]], *, plain: bool) -> None:
        self._allowed = allowed
        self._plain = plain
        self._failed: BaseException | None = None

    def load(self, data: bytes) -> Any:
        try:
            return self._unpack(data)
        except Exception:
            if self._failed is None:
                raise
        raise self._failed

    def _unpack(self, data: bytes) -> Any:
        return ormsgpack.unpackb(data, ext_hook=self._hook, option=ormsgpack.OPT_NON_STR_KEYS)

    def _hook(self, code: int, data: bytes) -> Any:
        try:
            return self._revive(code, self._unpack(data))
        except BaseException as error:
            self._failed = self._failed or error
            raise

    def _revive(self, code: int, payload: Any) -> Any:
        if code in _CONSTRUCT:
            return self._call(code, payload)
        if code == _DELTA:
            return _DeltaSnapshot(payload)
        if code == _ARRAY:
            return _array(payload)
        raise SerializationError(f"LangGraph writes no msgpack extension {code}: not what was put")

    def _call(self, code: int, payload: Any) -> Any:
        if not _is_call(payload):
            raise SerializationError(f"malformed msgpack extension {code}: no (module, name, argument)")
        module, name, argument = payload[:3]
        if code == _ARGS and module == "builtins" and name in _LOSSLESS:
            return _built(module, name, _LOSSLESS[name], argument)
        if payload[3:] == _AFTER_FIELDS.get(code) and self._is_lost(module, name):
            _tell_lost(module, name)
            return argument
        if code == _METHOD:
            target = self._method(module, name, *payload[3:4])
        else:
            target = self._type(module, name, plain=self._plain)
        return _built(module, name, _CONSTRUCT[code], target, argument)

    def _type(self, module: str, name: str, *, plain: bool) -> Any:
        if (module, name) in _policy.SAFE_MSGPACK_TYPES:
            return _safe(module, name)
        if (module, name) in self._allowed:
            return _imported(module, name)
        found = _loaded(module, name) if plain else None
        if not _is_plain_data(found):
            emit_serde_event({"kind": "msgpack_blocked", "module": module, "name": name})
            raise _refusal(module, name, plain)
        return found

    def _is_lost(self, module: str, name: str) -> bool:
        """Tell whether a model can't be found because it was defined in a function or a class."""
        if not self._plain or module not in sys.modules or _loaded(module, name) is not None:
            return False
        if _loaded(module, "__getattr__") is not None:
            # The module may have it, but would import something to give it.
            return False
        return (module, name) not in self._allowed and (module, name) not in _policy.SAFE_MSGPACK_TYPES

    def _method(self, module: str, name: str, method: str = "") -> Any:
        if (module, name, method) in _policy.SAFE_MSGPACK_METHODS:
            return getattr(_safe(module, name), method)
        if (module, name) in self._allowed and method == "fromisoformat":
            cls = self._type(module, name, plain=False)
            if isinstance(cls, type) and issubclass(cls, datetime):
                return cls.fromisoformat
        emit_serde_event({"kind": "msgpack_method_blocked", "module": module, "name": name, "method": method})
        raise _refusal(module, name, plain=False, called=f"{module}.{name}.{method}")

    def revive_json(self, value: dict[str, Any]) -> Any:
        """Revive an object of LangGraph's former JSON format."""
        path = value.get("id")
        if value.get("lc") not in (1, 2) or value.get("type") != "constructor" or path is None:
            return self._revive_langchain(value)
        if not (isinstance(path, list) and len(path) > 1 and all(isinstance(part, str) for part in path)):
            raise SerializationError(f"malformed JSON constructor: {path!r} is no path of a type")
        if value["lc"] == 2:
            return self._revive_constructor(value, ".".join(path[:-1]), path[-1])
        *package, name = ALL_SERIALIZABLE_MAPPINGS.get(tuple(path), tuple(path))
        self._type(".".join(package), name, plain=False)
        return self._revive_langchain(value)

    def _revive_langchain(self, value: dict[str, Any]) -> Any:
        try:
            return _stock.LC_REVIVER(value)
        except Exception as error:
            raise SerializationError(f"cannot build {value.get('id')!r} from its JSON: {error}") from error

    def _revive_constructor(self, value: dict[str, Any], module: str, name: str) -> Any:
        args, kwargs = value.get("args") or [], value.get("kwargs") or {}
        method = value.get("method")  # any other than a safe one is ignored, as LangGraph does
        if isinstance(method, str) and (module, name, method) in _policy.SAFE_MSGPACK_METHODS:
            target = self._method(module, name, method)
        else:
            target = self._type(module, name, plain=False)
        if kwargs and not args:
            return _built(module, name, _model, target, kwargs)
        return _built(module, name, lambda: target(*args, **kwargs))


@functools.lru_cache(1024)
def _tell_lost(module: str, name: str) -> None:
    logger.warning(
        "%s.%s is a pydantic model that its module doesn't have at the top, so it is read as its fields, as "
        "LangGraph's own serializer does. A pydantic state makes a model of them; for others, define it at "
        "the top of a module.",
        module,
        name,
    )


def _is_call(payload: Any) -> bool:
    return (
        isinstance(payload, list)
        and len(payload) > 2
        and isinstance(payload[0], str)
        and isinstance(payload[1], str)
        and (len(payload) == 3 or isinstance(payload[3], str))
    )


def _built(module: str, name: str, build: Callable[..., Any], *args: Any) -> Any:
    try:
        return build(*args)
    except SerializationError:
        raise
    except Exception as error:
        raise SerializationError(
            f"{module}.{name} may be constructed, but not from what is stored ({type(error).__name__}: "
            f"{error}). Let the class accept its former values, or read with the code that wrote them."
        ) from error


def _imported(module: str, name: str) -> Any:
    module = _MOVED.get(module, module)
    try:
        return getattr(sys.modules.get(module) or importlib.import_module(module), name)
    except Exception as error:
        raise SerializationError(
            f"{module}.{name} may be constructed, but cannot be imported ({type(error).__name__}: {error}). "
            "A stored class must be found at the top of its module, under its own name."
        ) from error


_safe = functools.cache(_imported)  # called for LangGraph's few safe types only


def _loaded(module: str, name: str) -> Any:
    # Not getattr: a lazy module imports on attribute access, through `__getattr__` or `__getattribute__`.
    try:
        return object.__getattribute__(sys.modules[module], "__dict__").get(name)
    except (KeyError, AttributeError):
        return None


def _is_plain_data(found: Any) -> bool:
    # Python 3.10 takes list[int] for a type.
    if not isinstance(found, type) or isinstance(found, GenericAlias):
        return False
    return (
        dataclasses.is_dataclass(found)
        or issubclass(found, (BaseModel, Enum, SecretStr, SecretBytes, Secret, *_pydantic_v1_kinds()))
        or (issubclass(found, tuple) and hasattr(found, "_fields"))
        or hasattr(found, "__attrs_attrs__")
    )


def _pydantic_v1_kinds() -> list[type]:
    homes = (("pydantic.v1.main", "BaseModel"), ("pydantic.v1.types", "SecretStr"))
    found = [_loaded(*home) for home in (*homes, ("pydantic.v1.types", "SecretBytes"))]
    return [kind for kind in found if kind is not None]


def _refusal(module: str, name: str, plain: bool, called: str = "") -> UnsafeTypeError:
    loaded = "imported" if module in sys.modules else "not imported"
    wanted = f"a stored value wants {called or f'{module}.{name}'}, which is "
    if plain and _loaded(module, name) is None and module in sys.modules:
        return UnsafeTypeError(
            module,
            name,
            f"{wanted}no name of that module: a local or nested class, or one of a script that was run, "
            "cannot be found again. Define it at the top of a module and write the state anew; "
            "strict_msgpack=False reads what is stored as plain data.",
        )
    if not plain:
        why = "neither one of LangGraph's safe types nor allow-listed"
    else:
        why = f"neither safe nor allow-listed, and no plain data class of an imported module (it is {loaded})"
    hint = " Or import its module before loading, if it is a plain data class." if plain else ""
    return UnsafeTypeError(
        module,
        name,
        f"{wanted}{why}. To allow it: "
        f'HarnessSerializer(allowed_msgpack_modules=[("{module}", "{name}")]) or CheckpointerConfig('
        f"allowed_msgpack_modules=...).{hint} strict_msgpack=False loads whatever LangGraph itself would.",
    )


def _from_argument(target: Any, value: Any) -> Any:
    try:
        return target(value)
    except ValueError:
        if not isinstance(target, EnumMeta):
            raise
        return target(_with_tuples(value))  # msgpack made a list of a value that was a tuple


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _from_args(target: Any, args: list[Any]) -> Any:
    _refuse_enum(target)
    # Send's third argument is keyword-only.
    if len(args) == 3 and (target.__module__, target.__name__) == ("langgraph.types", "Send"):
        return target(*args[:2], timeout=args[2])
    return target(*args)


def _from_kwargs(cls: Any, values: dict[str, Any]) -> Any:
    _refuse_enum(cls)
    fields = dataclasses.fields(cls) if hasattr(cls, "__dataclass_fields__") else ()
    late = {field.name for field in fields if not field.init}
    obj = cls(**{name: value for name, value in values.items() if name not in late})
    for name in late & values.keys():
        object.__setattr__(obj, name, values[name])
    return obj


def build_message(cls: type[BaseModel], fields: dict[str, Any]) -> Any:
    """Make one of LangChain's messages of its stored fields; raise `SerializationError` if it can't be."""
    return _built(cls.__module__, cls.__name__, _model, cls, fields)


def _refuse_enum(target: Any) -> None:
    # Enum("Name", "A B") would make a class.
    if isinstance(target, EnumMeta):
        raise ValueError("an enum is stored by its value")


def _model(cls: Any, values: Any) -> Any:
    _refuse_enum(cls)
    if cls in NAMES and type(values) is dict and tuple(values) == NAMES[cls]:
        return restored((cls,), (values,))[0]
    try:
        return _validated(cls, values)
    except Exception:
        # As LangGraph does: a model whose validation has changed still gets its former values.
        construct = getattr(cls, "model_construct", None) or getattr(cls, "construct", None)
        if construct is None:
            raise
        return construct(values) if _is_root(cls) else construct(**values)


def _validated(cls: Any, values: Any) -> Any:
    if _is_root(cls):
        return cls.model_validate(values)
    if _BY_NAME and cls.__init__ is BaseModel.__init__:
        return cls.__pydantic_validator__.validate_python(values, by_name=True)
    return cls(**values)


def _is_root(cls: Any) -> bool:
    # Not issubclass, which is slow for pydantic's classes.
    return getattr(cls, "__pydantic_root_model__", False) is True


_CONSTRUCT: dict[int, Callable[[Any, Any], Any]] = {
    _ARG: _from_argument,
    _ARGS: _from_args,
    _KWARGS: _from_kwargs,
    _METHOD: _from_argument,
    _MODEL_V1: _model,
    _MODEL: _model,
}

# What stands behind a model's fields, as LangGraph writes them.
_AFTER_FIELDS = {_MODEL_V1: [], _MODEL: ["model_validate_json"]}


def _array(parts: Any) -> Any:
    try:
        dtype, shape, order, data = parts
        numpy = importlib.import_module("numpy")
        kind = numpy.dtype(str(dtype))
        if kind.hasobject:
            raise UnsafeTypeError("numpy", "object", "a stored array of objects holds pointers, not values")
        # A bytearray, because an array over bytes would be read-only, unlike the one that was put.
        array = numpy.ndarray(tuple(shape), kind, bytearray(data), order=order)
        if array.nbytes != len(data):
            raise ValueError(f"{len(data)} bytes for {array.nbytes}")
    except SerializationError:
        raise
    except Exception as error:
        raise SerializationError(f"cannot build a stored numpy array: {error}") from error
    return array


# --- what a string with surrogates, and a dict with such keys, is written as ---------------------------

_SURROGATES = ("utf-8", "surrogatepass")


def _str(args: Any) -> str:
    data, *how = args
    if not isinstance(data, bytes) or tuple(how) != _SURROGATES:
        raise _refusal("builtins", "str", plain=False)
    return data.decode(*_SURROGATES)


def _dict(args: Any) -> dict[Any, Any]:
    (pairs,) = args
    return {key: value for key, value in pairs}  # noqa: C416  (dict() would take a mapping)


def _tuple(args: Any) -> tuple[Any, ...]:
    (items,) = args
    return tuple(items)


_LOSSLESS: dict[str, Callable[[Any], Any]] = {"str": _str, "dict": _dict, "tuple": _tuple}
