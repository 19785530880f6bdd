"""Values from LangGraph's msgpack and its former JSON, under a policy of what may be constructed."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import logging
import sys
from datetime import datetime
from enum import Enum, EnumMeta
from types import GenericAlias
from typing import TYPE_CHECKING, Any

import ormsgpack
from langchain_core.load.load import ALL_SERIALIZABLE_MAPPINGS
from langgraph.checkpoint.serde import _msgpack as _policy
from langgraph.checkpoint.serde import jsonplus as _stock
from langgraph.checkpoint.serde.event_hooks import emit_serde_event
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from pydantic import BaseModel, Secret, SecretBytes, SecretStr
from pydantic.version import version_short

from langgraph_harness_saver.errors import SerializationError, UnsafeTypeError
from langgraph_harness_saver.messages import NAMES, restored
from langgraph_harness_saver.packing import (
    ARG,
    ARGS,
    ARRAY,
    DELTA,
    KWARGS,
    METHOD,
    MODEL,
    MODEL_V1,
    SURROGATES,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

logger = logging.getLogger(__name__)

# A dump holds field names, never aliases; before 2.11 pydantic cannot be told so at run time.
_BY_NAME = tuple(map(int, version_short().split("."))) >= (2, 11)

# Python 3.13 alone names pathlib's classes so.
_MOVED = {"pathlib._local": "pathlib"}


class Reader:
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
        if code == DELTA:
            return _DeltaSnapshot(payload)
        if code == ARRAY:
            return _array(payload)
        raise SerializationError(f"LangGraph writes no msgpack extension {code}: not what was put")

    def _call(self, code: int, payload: Any) -> Any:
        if not _is_call(payload):
            raise SerializationError(f"malformed msgpack extension {code}: no (module, name, argument)")
        module, name, argument = payload[:3]
        if code == ARGS and module == "builtins" and name in _LOSSLESS:
            return _built(module, name, _LOSSLESS[name], argument)
        if payload[3:] == _AFTER_FIELDS.get(code) and self._is_lost(module, name):
            _tell_lost(module, name)
            return argument
        if code == METHOD:
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
    ARG: _from_argument,
    ARGS: _from_args,
    KWARGS: _from_kwargs,
    METHOD: _from_argument,
    MODEL_V1: _model,
    MODEL: _model,
}

# What stands behind a model's fields, as LangGraph writes them.
_AFTER_FIELDS = {MODEL_V1: [], MODEL: ["model_validate_json"]}


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


def _str(args: Any) -> str:
    data, *how = args
    if not isinstance(data, bytes) or tuple(how) != SURROGATES:
        raise _refusal("builtins", "str", plain=False)
    return data.decode(*SURROGATES)


def _dict(args: Any) -> dict[Any, Any]:
    (pairs,) = args
    return {key: value for key, value in pairs}  # noqa: C416  (dict() would take a mapping)


def _tuple(args: Any) -> tuple[Any, ...]:
    (items,) = args
    return tuple(items)


_LOSSLESS: dict[str, Callable[[Any], Any]] = {"str": _str, "dict": _dict, "tuple": _tuple}
