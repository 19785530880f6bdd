"""The default serializer: what it may construct, and that it alters no string."""

from __future__ import annotations

import copy
import dataclasses
import decimal
import enum
import importlib.util
import ipaddress
import json
import math
import pathlib
import re
import sys
import textwrap
import uuid
import zoneinfo
from collections import deque
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta, timezone
from typing import Any, NamedTuple

import ormsgpack
import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    ChatMessageChunk,
    FunctionMessage,
    FunctionMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    RemoveMessage,
    SystemMessage,
    SystemMessageChunk,
    ToolMessage,
    ToolMessageChunk,
)
from langgraph.checkpoint.serde import _msgpack as policy
from langgraph.checkpoint.serde.base import SerializerCompat
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.store.base import Item
from langgraph.types import Command, Interrupt, Send, TimeoutPolicy
from pydantic import BaseModel, ConfigDict, Field, RootModel, SecretStr

from langgraph_harness_saver.errors import InvalidConfigError, SerializationError, UnsafeTypeError
from langgraph_harness_saver.messages import FIELDS
from langgraph_harness_saver.serde import HarnessSerializer, allowlisted

ARG, ARGS, KWARGS, METHOD, MODEL_V1, MODEL, ARRAY, DELTA = range(8)
CONSTRUCTORS = (ARG, ARGS, KWARGS, METHOD, MODEL_V1, MODEL)


@pytest.fixture(autouse=True)
def _not_strict_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "STRICT_MSGPACK_ENABLED", False)


# --- plain data classes of an imported module: this one ------------------------------------------------


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, (2, 3))


class Level(enum.IntEnum):
    LOW = 1


class Tone(str, enum.Enum):
    HIGH = "high"
    ODD = "\udc80"


@dataclasses.dataclass
class Point:
    x: Any
    y: Any = 0


@dataclasses.dataclass(frozen=True)
class Counted:
    items: Any
    count: int = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", 0)


class Pair(NamedTuple):
    left: Any
    right: Any


class Model(BaseModel):
    name: Any
    secret: SecretStr | None = None


class Aliased(BaseModel):
    name: str = Field(default="default", alias="theName")


class Holder(BaseModel):
    held: Aliased


class Names(RootModel[list[str]]):
    pass


class Table(RootModel[dict[str, int]]):
    pass


class Stern(BaseModel):
    model_config = ConfigDict(extra="forbid")
    age: int = Field(gt=0)


class Grumpy:
    """Written as a named tuple is, but no plain data class."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def _asdict(self) -> dict[str, Any]:
        return {"x": 1}


class Stamp(datetime):
    pass


ListAlias = list[int]
STAMP = datetime(2024, 1, 2, tzinfo=timezone.utc)


def function(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("a load called a function")


PLAIN = [
    Colour.RED,
    Colour.PAIR,
    Level.LOW,
    Tone.HIGH,
    Point(1, [2]),
    Point(Point(1), {"k": Point(2)}),
    Pair(1, "b"),
    Model(name="n", secret=SecretStr("hush")),
    Names(["a", "b"]),
    Table({"root": 1}),
    Table({}),
]

SAFE = [
    datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc),
    date(2024, 1, 2),
    time(1, 2, 3, 4, tzinfo=timezone(timedelta(hours=1)), fold=1),
    timedelta(1, 2, 3),
    timezone.utc,
    zoneinfo.ZoneInfo("UTC"),
    uuid.UUID(int=5),
    decimal.Decimal("1.10"),
    {1, "b"},
    frozenset({1}),
    deque([1, 2]),
    ipaddress.ip_address("1.2.3.4"),
    ipaddress.ip_interface("1.2.3.4/24"),
    ipaddress.ip_network("1.2.3.0/24"),
    ipaddress.ip_address("::1"),
    ipaddress.ip_interface("::1/64"),
    ipaddress.ip_network("::/64"),
    pathlib.Path("/a/b"),
    re.compile("a.b", re.IGNORECASE),
    re.compile(b"a.b"),
    HumanMessage("hi", id="1"),
    AIMessage("hi", id="2", tool_calls=[{"name": "t", "args": {"a": 1}, "id": "3"}]),
    ToolMessage("ok", tool_call_id="3", artifact={"a": {1}}),
    Send("node", {"a": HumanMessage("x")}),
    Send("node", 1, timeout=TimeoutPolicy(run_timeout=1.5)),
    Interrupt(value={"q": 1}, id="i"),
    Command(update={"a": 1}, goto="b"),
    _DeltaSnapshot([HumanMessage("x")]),
]

NATIVE = [
    None,
    b"\x00\xff",
    bytearray(b"ab"),
    True,
    0,
    2**64 - 1,
    -(2**63),
    1e300,
    math.inf,
    -0.0,
    "",
    "a\x00b",
    "ünï\U0001f600",
    [],
    {},
    [1, [2, {"a": None}]],
    {1: "a", 1.5: "b", None: "c", False: "d", (1, 2): "e", b"k": "f"},
]


def ids(value: Any) -> str:
    return type(value).__name__


def packed(code: int, *payload: Any) -> tuple[str, bytes]:
    return "msgpack", ormsgpack.packb(extension(code, *payload))


def extension(code: int, *payload: Any) -> ormsgpack.Ext:
    return ormsgpack.Ext(code, ormsgpack.packb(payload))


def round_trip(value: Any, serde: Any = None) -> Any:
    serde = serde or HarnessSerializer()
    return serde.loads_typed(serde.dumps_typed(value))


# --- the bytes are LangGraph's -------------------------------------------------------------------------


@pytest.mark.parametrize("value", [*NATIVE, *SAFE, *PLAIN], ids=ids)
@pytest.mark.parametrize(
    "wrap", [lambda v: v, lambda v: {"k": [v]}, Point], ids=["bare", "nested", "dataclass"]
)
def test_writes_what_langgraph_writes(value: Any, wrap: Any) -> None:
    wrapped = wrap(value)
    assert HarnessSerializer().dumps_typed(wrapped) == JsonPlusSerializer().dumps_typed(wrapped)


class Text(str):
    """Python's `str`, but not exactly."""

    __slots__ = ()


CALL = {"name": "f", "args": {"x": (1, 2.0)}, "id": "c", "type": "tool_call"}
MESSAGES = [
    AIMessage(
        "x", tool_calls=[CALL], usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3}
    ),
    AIMessage(["x", {"type": "text", "text": "y"}], response_metadata={"a": {1: None}, "b": [True, 1.5]}),
    HumanMessage("x", extra="of pydantic's"),
    HumanMessage("\ud800"),
    HumanMessage("x", additional_kwargs={"set": {1}, "tuple": (1, 2), "bytes": b"x", "enum": Colour.RED}),
    HumanMessage("x", additional_kwargs={"message": SystemMessage("y", additional_kwargs={"when": STAMP})}),
    HumanMessage("x", additional_kwargs={"str": Text("y"), "keys": {STAMP: 1, Colour.RED: 2, None: 3}}),
    HumanMessage.model_construct(content=Text("y"), id=7),
    HumanMessage.model_construct(),
    ToolMessage("x", tool_call_id="c", artifact=Point(1)),
    *(SystemMessage("x", id="1"), ChatMessage("x", role="r"), FunctionMessage("x", name="f")),
    *(
        RemoveMessage("1"),
        AIMessageChunk("x"),
        HumanMessageChunk("x"),
        ToolMessageChunk("x", tool_call_id="c"),
    ),
    *(SystemMessageChunk("x"), ChatMessageChunk("x", role="r"), FunctionMessageChunk("x", name="f")),
]


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("value", MESSAGES, ids=ids)
def test_writes_messages_as_langgraph_does(value: Any) -> None:
    # LangGraph's own would replace the surrogate.
    surrogates = getattr(value, "content", None) == "\ud800"
    ours, theirs = HarnessSerializer().dumps_typed([value]), JsonPlusSerializer().dumps_typed([value])
    assert (ours == theirs) is not surrogates


def test_langchain_s_messages_dump_nothing_but_their_fields() -> None:
    # Or else they'd be written as ever, but not as fast.
    assert {type(message) for message in MESSAGES} == set(FIELDS)


def test_a_message_that_was_changed_is_written_as_it_is() -> None:
    message = HumanMessage("x", id="1")
    before = HarnessSerializer().dumps_typed([message])
    message.additional_kwargs["late"] = 1
    changed = HarnessSerializer().dumps_typed([message])
    assert changed != before
    assert changed == JsonPlusSerializer().dumps_typed([message])
    # What isn't a field is no part of a message, wherever Python keeps it.
    vars(message)["cached"] = "x"
    assert HarnessSerializer().dumps_typed([message]) == changed


def test_unknown_keys_of_a_tool_call_are_written_as_langgraph_writes_them() -> None:
    message = AIMessage("x", tool_calls=[CALL])
    message.tool_calls[0]["unknown"] = 1
    assert HarnessSerializer().dumps_typed([message]) == JsonPlusSerializer().dumps_typed([message])


def test_a_class_made_of_a_message_is_written_as_that_class() -> None:
    class Special(AIMessage):
        def model_dump(self, **_: Any) -> dict[str, Any]:
            return {"content": "special"}

    value = [Special("x")]
    assert HarnessSerializer().dumps_typed(value) == JsonPlusSerializer().dumps_typed(value)


@pytest.mark.parametrize("value", [*NATIVE, *SAFE], ids=ids)
@pytest.mark.parametrize("strict", [None, True, False])
def test_reads_back_native_and_safe_values_in_every_mode(value: Any, strict: bool | None) -> None:
    serde = HarnessSerializer(strict_msgpack=strict)
    loaded = round_trip(value, serde)
    assert loaded == value
    assert type(loaded) is type(value)
    assert round_trip({"k": [value]}, serde) == {"k": [value]}


@pytest.mark.parametrize(
    "value",
    [
        ValueError("x"),
        Stamp(2024, 1, 1),
        Item(value={}, key="k", namespace=(), created_at=STAMP, updated_at=STAMP),
    ],
    ids=ids,
)
def test_writes_odd_objects_as_langgraph_does(value: Any) -> None:
    assert HarnessSerializer().dumps_typed(value) == JsonPlusSerializer().dumps_typed(value)


def test_nan_survives() -> None:
    assert math.isnan(round_trip(math.nan))
    assert math.isnan(round_trip([{"a": math.nan}])[0]["a"])


def test_bytearray_is_not_aliased() -> None:
    value = bytearray(b"ab")
    _, data = HarnessSerializer().dumps_typed(value)
    value[0] = 0
    assert data == b"ab"


def test_reading_gives_fresh_objects() -> None:
    serde = HarnessSerializer()
    data = serde.dumps_typed([Point([1])])
    serde.loads_typed(data)[0].x.append(2)
    assert serde.loads_typed(data) == [Point([1])]


# --- policy: plain data classes ------------------------------------------------------------------------


@pytest.mark.parametrize("value", PLAIN, ids=ids)
@pytest.mark.parametrize(
    "wrap",
    [
        lambda v: v,
        lambda v: {"k": [v]},
        lambda v: Send("n", v),
        lambda v: Interrupt(value=v, id="i"),
        _DeltaSnapshot,
    ],
    ids=["bare", "nested", "send", "interrupt", "snapshot"],
)
def test_plain_data_classes_are_safe_but_not_strict(value: Any, wrap: Any) -> None:
    data = HarnessSerializer().dumps_typed(wrap(value))
    assert HarnessSerializer().loads_typed(data) == wrap(value)
    with pytest.raises(UnsafeTypeError) as caught:
        HarnessSerializer(strict_msgpack=True).loads_typed(data)
    assert caught.value.module in (__name__, "pydantic.types")
    listed = HarnessSerializer(strict_msgpack=True, allowed_msgpack_modules=[type(value), SecretStr])
    assert listed.loads_typed(data) == wrap(value)


def test_attrs_classes_are_plain_data() -> None:
    attrs = pytest.importorskip("attrs")
    module = sys.modules[__name__]
    module.Spot = attrs.define(type("Spot", (), {"__annotations__": {"x": int}}))  # type: ignore[attr-defined]
    try:
        loaded = HarnessSerializer().loads_typed(packed(KWARGS, __name__, "Spot", {"x": 1}))
        assert loaded == module.Spot(x=1)  # type: ignore[attr-defined]
    finally:
        del module.Spot  # type: ignore[attr-defined]


def test_pydantic_v1_models_are_plain_data() -> None:
    v1 = pytest.importorskip("pydantic.v1")
    module: Any = sys.modules[__name__]
    module.Old = type("Old", (v1.BaseModel,), {"__annotations__": {"x": int}, "__module__": __name__})
    try:
        assert round_trip(module.Old(x=1)) == module.Old(x=1)
        stale = HarnessSerializer().loads_typed(packed(MODEL_V1, __name__, "Old", {"x": "no int"}))
        assert type(stale) is module.Old
        assert stale.x == "no int"
        with pytest.raises(UnsafeTypeError):
            round_trip(module.Old(x=1), HarnessSerializer(strict_msgpack=True))
    finally:
        del module.Old


def test_fields_that_init_does_not_take_are_restored() -> None:
    value = Counted([1])
    object.__setattr__(value, "count", 7)
    assert round_trip(value).count == 7


@pytest.mark.parametrize("value", [Aliased(theName="given"), Holder(held=Aliased(theName="given"))], ids=ids)
def test_aliased_fields_do_not_fall_back_to_their_default(value: BaseModel) -> None:
    assert round_trip(value) == value


def test_a_model_whose_validation_changed_keeps_its_values() -> None:
    loaded = HarnessSerializer().loads_typed(
        packed(MODEL, __name__, "Stern", {"age": -1}, "model_validate_json")
    )
    assert type(loaded) is Stern
    assert loaded.age == -1


@pytest.mark.parametrize(
    ("code", "name", "payload"),
    [
        (KWARGS, "Point", {"gone": 1}),
        (KWARGS, "Pair", {"left": 1}),
        (ARG, "Colour", "blue"),
        (MODEL, "Point", {"gone": 1}),
        (ARGS, "Colour", ["New", "A B"]),
        (KWARGS, "Colour", {"value": "New", "names": "A B"}),
        (MODEL, "Colour", {"value": "New", "names": "A B"}),
    ],
)
def test_a_permitted_class_that_cannot_be_built_is_an_error(code: int, name: str, payload: Any) -> None:
    with pytest.raises(SerializationError, match=rf"{__name__}\.{name}") as caught:
        HarnessSerializer().loads_typed(packed(code, __name__, name, payload))
    assert not isinstance(caught.value, UnsafeTypeError)
    assert caught.value.__cause__ is not None


def test_a_safe_class_that_cannot_be_built_is_an_error_too() -> None:
    with pytest.raises(SerializationError, match=r"uuid\.UUID"):
        HarnessSerializer().loads_typed(packed(ARG, "uuid", "UUID", "no uuid"))


@pytest.mark.skipif(sys.platform == "win32", reason="PosixPath")
def test_paths_written_by_python_3_13_are_read() -> None:
    assert HarnessSerializer().loads_typed(
        packed(ARGS, "pathlib._local", "PosixPath", ["/", "a"])
    ) == pathlib.Path("/a")


# --- policy: everything else ---------------------------------------------------------------------------


HOSTILE = [
    ("os", "system"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("builtins", "object"),
    ("builtins", "type"),
    ("subprocess", "Popen"),
    ("importlib", "import_module"),
    ("pickle", "loads"),
    ("pathlib", "Path.home"),
    ("functools", "partial"),
    ("langchain_core.runnables.base", "RunnableLambda"),
    (__name__, "function"),
    (__name__, "Grumpy"),
    (__name__, "Stamp"),
    (__name__, "ListAlias"),
    (__name__, "pytest"),
    (__name__, "PLAIN"),
    (__name__, "__builtins__"),
    (__name__, "no_such_name"),
    ("", ""),
    ("no.such.module", "Name"),
]


@pytest.mark.parametrize("strict", [None, True])
@pytest.mark.parametrize("code", CONSTRUCTORS)
@pytest.mark.parametrize(("module", "name"), HOSTILE)
def test_hostile_payloads_are_refused(
    module: str, name: str, code: int, strict: bool | None, tmp_path: pathlib.Path
) -> None:
    argument: Any = f"touch {tmp_path}/owned" if code in (ARG, METHOD) else [f"touch {tmp_path}/owned"]
    if code in (KWARGS, MODEL, MODEL_V1):
        argument = {"args": f"touch {tmp_path}/owned", "shell": True}
    before = set(sys.modules)
    hostile = extension(code, module, name, argument, "__call__")
    serde = HarnessSerializer(strict_msgpack=strict)
    for value in (hostile, [{"k": hostile}], *nests(hostile)):
        with pytest.raises(UnsafeTypeError) as caught:
            serde.loads_typed(("msgpack", ormsgpack.packb(value)))
        assert (caught.value.module, caught.value.name) == (module, name)
    assert not list(tmp_path.iterdir())
    assert set(sys.modules) == before


def nests(hostile: ormsgpack.Ext) -> Iterator[ormsgpack.Ext]:
    """Put a hostile value where LangGraph's own hook would swallow what a nested hook raises."""
    yield extension(MODEL, "langchain_core.messages.human", "HumanMessage", {"content": [hostile]})
    yield extension(ARGS, "langgraph.types", "Send", ["node", {"a": hostile}])
    yield extension(KWARGS, "langgraph.types", "Interrupt", {"value": hostile, "id": "i"})
    yield extension(ARG, "builtins", "set", [hostile])
    yield ormsgpack.Ext(DELTA, ormsgpack.packb(hostile))
    yield ormsgpack.Ext(ARRAY, ormsgpack.packb([hostile, [1], "C", b"x"]))
    yield extension(ARGS, "builtins", "dict", [[["a", hostile]]])


@pytest.mark.parametrize(
    "payload",
    [
        (METHOD, "datetime", "datetime", "x", "strptime"),
        (METHOD, "datetime", "datetime", "x", "__class__"),
        (METHOD, "pathlib", "Path", "x", "rmdir"),
        (METHOD, __name__, "Point", "x", "__init__"),
        (METHOD, __name__, "Model", "{}", "model_validate_json"),
        (METHOD, "builtins", "str", "x", "format"),
        (ARG, "builtins", "str", b"x"),
        (ARGS, "builtins", "str", [b"x", "evil", "surrogatepass"]),
        (ARGS, "builtins", "str", [1, "utf-8", "surrogatepass"]),
        (KWARGS, "builtins", "dict", {"a": 1}),
    ],
)
@pytest.mark.parametrize("strict", [None, True])
def test_other_methods_and_arguments_are_refused(payload: Any, strict: bool | None) -> None:
    with pytest.raises(UnsafeTypeError):
        HarnessSerializer(strict_msgpack=strict).loads_typed(packed(*payload))


@pytest.mark.parametrize(
    "data",
    [
        packed(ARG),
        packed(ARG, "uuid", "UUID"),
        packed(ARG, 1, "UUID", "x"),
        packed(METHOD, "datetime", "datetime", "2024-01-01", ["fromisoformat"]),
        packed(8, "uuid", "UUID", "x"),
        packed(100, "x"),
        packed(ARGS, "builtins", "dict", [1]),
        packed(ARGS, "builtins", "tuple", [1, 2]),
        ("msgpack", ormsgpack.packb(ormsgpack.Ext(ARG, ormsgpack.packb("text")))),
        packed(ARRAY, "<f8"),
    ],
)
def test_malformed_extensions_are_errors(data: tuple[str, bytes]) -> None:
    with pytest.raises(SerializationError):
        HarnessSerializer().loads_typed(data)


def test_corrupt_bytes_are_errors() -> None:
    with pytest.raises(ormsgpack.MsgpackDecodeError):
        HarnessSerializer().loads_typed(("msgpack", b"\xc1"))
    with pytest.raises(ormsgpack.MsgpackDecodeError):
        HarnessSerializer().loads_typed(("msgpack", ormsgpack.packb(ormsgpack.Ext(ARG, b"\xc1"))))


def test_the_refusal_says_how_to_allow_the_type() -> None:
    with pytest.raises(UnsafeTypeError) as caught:
        HarnessSerializer().loads_typed(packed(KWARGS, "not_there", "Thing", {}))
    for words in (
        "not_there.Thing",
        'HarnessSerializer(allowed_msgpack_modules=[("not_there", "Thing")])',
        "CheckpointerConfig(allowed_msgpack_modules=...)",
        "import its module",
        "strict_msgpack=False",
    ):
        assert words in str(caught.value)


def test_a_local_model_is_read_as_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    """As LangGraph's serializer does: its own tests have pydantic states with such models in them."""
    v1 = pytest.importorskip("pydantic.v1")

    class LocalModel(BaseModel):
        x: Point

    class LocalFormerModel(v1.BaseModel):
        x: int

    values = [LocalModel(x=Point(1, 2)), {"deep": LocalFormerModel(x=2)}]
    plain = [{"x": {"x": 1, "y": 2}}, {"deep": {"x": 2}}]
    assert round_trip(values) == round_trip(values) == plain
    assert [record.args[1] for record in caplog.records if record.args] == ["LocalModel", "LocalFormerModel"]
    assert plain == round_trip(values, JsonPlusSerializer())
    assert LocalModel.model_validate(round_trip(values)[0]) == values[0]
    with pytest.raises(UnsafeTypeError, match="LocalModel"):
        round_trip(values, HarnessSerializer(strict_msgpack=True))


def test_local_classes_cannot_be_found_again() -> None:
    @dataclasses.dataclass
    class Local:
        x: int

    with pytest.raises(UnsafeTypeError, match="local or nested class"):
        round_trip(Local(1))
    with pytest.raises(SerializationError, match="at the top of its module"):
        round_trip(Local(1), HarnessSerializer(allowed_msgpack_modules=[Local]))


@pytest.fixture
def unloaded(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name a module that can be imported, but has not been."""
    name = "harness_serde_unloaded"
    (tmp_path / f"{name}.py").write_text(
        textwrap.dedent("""
        import dataclasses

        @dataclasses.dataclass
        class Thing:
            x: int
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize("strict", [None, True])
def test_loading_imports_no_module(unloaded: str, strict: bool | None) -> None:
    with pytest.raises(UnsafeTypeError, match=r"not imported|nor allow-listed"):
        HarnessSerializer(strict_msgpack=strict).loads_typed(packed(KWARGS, unloaded, "Thing", {"x": 1}))
    assert unloaded not in sys.modules


def test_a_plain_class_is_safe_once_its_module_is_imported(unloaded: str) -> None:
    thing = importlib.import_module(unloaded).Thing(1)
    data = packed(KWARGS, unloaded, "Thing", {"x": 1})
    assert HarnessSerializer().loads_typed(data) == thing


@pytest.mark.parametrize("strict", [None, True])
def test_an_allow_listed_module_is_imported(unloaded: str, strict: bool | None) -> None:
    serde = HarnessSerializer(strict_msgpack=strict, allowed_msgpack_modules=[(unloaded, "Thing")])
    assert serde.loads_typed(packed(KWARGS, unloaded, "Thing", {"x": 1})).x == 1


def test_a_lazy_module_is_not_loaded(unloaded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.find_spec(unloaded)
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, unloaded, module)
    spec.loader.exec_module(module)
    with pytest.raises(UnsafeTypeError):
        HarnessSerializer().loads_typed(packed(KWARGS, unloaded, "Thing", {"x": 1}))
    assert "Thing" not in object.__getattribute__(module, "__dict__")


def test_a_modules_getattr_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "__getattr__", function, raising=False)
    with pytest.raises(UnsafeTypeError):
        HarnessSerializer().loads_typed(packed(KWARGS, __name__, "Absent", {}))


def test_the_environment_makes_it_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "STRICT_MSGPACK_ENABLED", True)
    with pytest.raises(UnsafeTypeError):
        round_trip(Point(1))
    assert round_trip(Point(1), HarnessSerializer(strict_msgpack=False)) == Point(1)


# --- strict_msgpack=False: LangGraph's own behaviour ----------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        packed(ARGS, "operator", "add", [1, 2]),
        packed(KWARGS, "no.such.module", "Thing", {"x": 1}),
        packed(METHOD, "datetime", "datetime", "x", "strptime"),
        packed(ARG, "uuid", "UUID", "no uuid"),
        packed(99, "x"),
        packed(KWARGS, __name__, "Point", {"x": 1}),
    ],
)
def test_not_strict_loads_as_langgraph_does(data: tuple[str, bytes]) -> None:
    assert HarnessSerializer(strict_msgpack=False).loads_typed(data) == JsonPlusSerializer().loads_typed(data)


# --- allow-list ----------------------------------------------------------------------------------------


def test_with_msgpack_allowlist_keeps_class_and_policy() -> None:
    class Sub(HarnessSerializer):
        pass

    strict = Sub(strict_msgpack=True, allowed_msgpack_modules=[Pair], pickle_fallback=True)
    derived = strict.with_msgpack_allowlist([Point])
    assert type(derived) is Sub
    assert derived.pickle_fallback
    assert round_trip(Point(Pair(1, 2)), derived) == Point(Pair(1, 2))
    with pytest.raises(UnsafeTypeError):
        round_trip(Point(1), strict)
    with pytest.raises(UnsafeTypeError):
        round_trip(Colour.RED, derived)


@pytest.mark.parametrize("strict", [None, True, False])
def test_with_msgpack_allowlist_returns_itself_when_nothing_is_new(strict: bool | None) -> None:
    serde = HarnessSerializer(strict_msgpack=strict, allowed_msgpack_modules=[(__name__, "Point")])
    assert serde.with_msgpack_allowlist([Point]) is serde
    assert serde.with_msgpack_allowlist(()) is serde
    assert allowlisted(serde, [Point]) is serde


def test_safe_derives_safe() -> None:
    derived = HarnessSerializer().with_msgpack_allowlist([Grumpy])
    assert round_trip(Grumpy(), derived).values == {"x": 1}
    assert round_trip(Point(1), derived) == Point(1)


def test_permissive_derives_itself() -> None:
    serde = HarnessSerializer(strict_msgpack=False)
    assert serde.with_msgpack_allowlist([Grumpy]) is serde


def test_an_allow_listed_datetime_subclass_is_read_back() -> None:
    loaded = round_trip(Stamp(2024, 1, 2), HarnessSerializer(allowed_msgpack_modules=[Stamp]))
    assert type(loaded) is Stamp
    assert loaded == Stamp(2024, 1, 2)


def test_an_allow_listed_class_gets_no_other_method() -> None:
    serde = HarnessSerializer(allowed_msgpack_modules=[Stamp, Grumpy])
    for name, method in (("Stamp", "strptime"), ("Grumpy", "fromisoformat")):
        with pytest.raises(UnsafeTypeError):
            serde.loads_typed(packed(METHOD, __name__, name, "x", method))


@pytest.mark.parametrize("entry", ["module", ("one",), ("a", "b", "c")])
def test_allow_list_entries_are_checked(entry: Any) -> None:
    with pytest.raises(InvalidConfigError, match="allowed_msgpack_modules"):
        HarnessSerializer(allowed_msgpack_modules=[entry])


def test_allow_list_entries_may_be_lists() -> None:
    entry: Any = [__name__, "Point"]
    serde = HarnessSerializer(strict_msgpack=True, allowed_msgpack_modules=[entry])
    assert round_trip(Point(1), serde) == Point(1)


class Rot:
    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return "rot", bytes(255 - byte for byte in plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        return bytes(255 - byte for byte in ciphertext)


class Wrapper:
    def __init__(self, serde: Any) -> None:
        self.serde = serde
        self.own = object()

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return self.serde.dumps_typed(obj)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return self.serde.loads_typed(data)


class Untyped:
    def dumps(self, obj: Any) -> bytes:
        return json.dumps(obj).encode()

    def loads(self, data: bytes) -> Any:
        return json.loads(data)


class ReadOnly(Wrapper):
    serde = property(lambda self: self.inner)

    def __init__(self, serde: Any) -> None:
        self.inner = serde


class Itself(Wrapper):
    def __init__(self) -> None:
        self.serde = self


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: EncryptedSerializer(Rot(), s),
        Wrapper,
        SerializerCompat,
        lambda s: Wrapper(EncryptedSerializer(Rot(), Wrapper(s))),
        lambda s: EncryptedSerializer(Rot(), EncryptedSerializer(Rot(), s)),
    ],
)
@pytest.mark.parametrize(
    "serde", [HarnessSerializer(strict_msgpack=True), JsonPlusSerializer(allowed_msgpack_modules=None)]
)
def test_allowlisted_derives_through_wrappers(wrap: Any, serde: Any) -> None:
    wrapped = wrap(serde)
    derived = allowlisted(wrapped, iter([Point]))
    assert type(derived) is type(wrapped)
    assert derived is not wrapped
    innermost: Any = derived
    while not isinstance(innermost, JsonPlusSerializer):
        innermost = innermost.serde
    assert type(innermost) is type(serde)
    assert round_trip(Point(1), innermost) == Point(1)
    assert serde._allowed_msgpack_modules is None
    assert allowlisted(derived, [Point]) is derived


def test_allowlisted_keeps_the_wrappers_state() -> None:
    wrapped = Wrapper(EncryptedSerializer(Rot(), HarnessSerializer(strict_msgpack=True)))
    derived: Any = allowlisted(wrapped, [Point])
    assert derived.own is wrapped.own
    assert derived.serde.cipher is wrapped.serde.cipher
    assert round_trip(Point(1), derived) == Point(1)
    with pytest.raises(UnsafeTypeError):
        round_trip(Point(1), wrapped)


@pytest.mark.parametrize(
    "serde",
    [
        SerializerCompat(Untyped()),
        Wrapper(SerializerCompat(Untyped())),
        ReadOnly(HarnessSerializer()),
        Itself(),
        EncryptedSerializer(Rot(), HarnessSerializer(strict_msgpack=False)),
        JsonPlusSerializer(allowed_msgpack_modules=True),
    ],
    ids=ids,
)
def test_allowlisted_returns_what_it_cannot_derive(serde: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert allowlisted(serde, [Grumpy]) is serde
    assert not caplog.records


def test_refusals_pass_through_encryption() -> None:
    pytest.importorskip("Crypto")
    serde = EncryptedSerializer.from_pycryptodome_aes(HarnessSerializer(strict_msgpack=True), key=b"k" * 16)
    with pytest.raises(UnsafeTypeError):
        round_trip(Point(1), serde)
    assert round_trip(Point("\ud800"), allowlisted(serde, [Point])) == Point("\ud800")


# --- the former JSON format, and pickle ----------------------------------------------------------------


OLD_PATH = ("langchain", "schema", "messages", "HumanMessage")


def constructor(*path: str, lc: int = 2, **rest: Any) -> tuple[str, bytes]:
    return "json", json.dumps({"a": [{"lc": lc, "type": "constructor", "id": list(path), **rest}]}).encode()


@pytest.mark.parametrize("strict", [None, True])
@pytest.mark.parametrize(
    ("data", "value"),
    [
        (("json", b'{"a": [{"lc": 3}]}'), {"lc": 3}),
        (constructor("uuid", "UUID", args=[str(uuid.UUID(int=5))]), uuid.UUID(int=5)),
        (constructor("builtins", "set", args=[[1]]), {1}),
        (
            constructor("datetime", "datetime", method="fromisoformat", args=["2024-01-02T00:00:00"]),
            datetime(2024, 1, 2),
        ),
        (
            constructor(
                *("langchain_core", "messages", "human", "HumanMessage"),
                method=[None, "construct"],
                kwargs={"content": "x"},
            ),
            HumanMessage("x"),
        ),
        (
            constructor("langchain", "schema", "messages", "HumanMessage", lc=1, kwargs={"content": "x"}),
            HumanMessage("x"),
        ),
    ],
)
def test_json_revives_safe_types(data: tuple[str, bytes], value: Any, strict: bool | None) -> None:
    assert HarnessSerializer(strict_msgpack=strict).loads_typed(data) == {"a": [value]}


@pytest.mark.parametrize("strict", [None, True])
@pytest.mark.parametrize("lc", [1, 2])
@pytest.mark.parametrize(
    "path",
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("subprocess", "Popen"),
        (__name__, "Point"),
        ("langchain_core", "prompts", "prompt", "PromptTemplate"),
        ("langchain_core", "no_such_module", "Thing"),
    ],
)
def test_json_refuses_other_types(path: tuple[str, ...], lc: int, strict: bool | None) -> None:
    before = set(sys.modules)
    with pytest.raises(UnsafeTypeError) as caught:
        HarnessSerializer(strict_msgpack=strict).loads_typed(
            constructor(*path, lc=lc, args=["true"], kwargs={})
        )
    assert caught.value.name == path[-1]
    assert set(sys.modules) == before


def test_json_revives_allow_listed_types() -> None:
    serde = HarnessSerializer(allowed_msgpack_modules=[Point])
    assert serde.loads_typed(constructor(__name__, "Point", kwargs={"x": 1})) == {"a": [Point(1)]}


@pytest.mark.parametrize(
    "data",
    [
        constructor(),
        constructor("uuid"),
        constructor("uuid", "UUID", args=["no uuid"]),
        constructor(*OLD_PATH, lc=1, kwargs={"content": {1: 2}}),
        ("json", b'{"lc": 1, "type": "not_implemented", "id": ["a"]}'),
        ("json", b'{"lc": 2, "type": "constructor", "id": "uuid"}'),
    ],
)
def test_json_that_cannot_be_revived_is_an_error(data: tuple[str, bytes]) -> None:
    with pytest.raises(SerializationError):
        HarnessSerializer().loads_typed(data)


def test_not_strict_reads_json_as_langgraph_does() -> None:
    data = constructor(__name__, "Point", kwargs={"x": 1})
    assert HarnessSerializer(strict_msgpack=False).loads_typed(data) == JsonPlusSerializer().loads_typed(data)


@pytest.mark.parametrize("strict", [None, True, False])
def test_pickle_only_when_asked(strict: bool | None) -> None:
    value = {"a": 1j}
    serde = HarnessSerializer(strict_msgpack=strict, pickle_fallback=True)
    data = serde.dumps_typed(value)
    assert data[0] == "pickle"
    assert serde.loads_typed(data) == value
    with pytest.raises(NotImplementedError):
        HarnessSerializer(strict_msgpack=strict).loads_typed(data)
    assert serde.dumps_typed("\ud800")[0] == "msgpack"


# --- numpy ---------------------------------------------------------------------------------------------


def test_numpy_arrays_survive() -> None:
    np = pytest.importorskip("numpy")
    grid = np.arange(6.0).reshape(2, 3)
    for array in (
        grid,
        np.asfortranarray(grid),
        grid[:, ::2],
        grid.T,
        np.array(5),
        np.zeros((0, 2)),
        np.array(["é"]),
    ):
        assert HarnessSerializer().dumps_typed(array) == JsonPlusSerializer().dumps_typed(array)
        loaded = round_trip({"a": array})["a"]
        assert loaded.dtype == array.dtype
        assert loaded.shape == array.shape
        assert (loaded == array).all()
        assert loaded.flags.writeable
    stamps = np.array(["2024-01-02"], dtype="M8[ns]")
    assert (round_trip(stamps) == stamps).all()


@pytest.mark.parametrize("strict", [None, True])
def test_arrays_of_objects_are_refused(strict: bool | None) -> None:
    np = pytest.importorskip("numpy")
    serde = HarnessSerializer(strict_msgpack=strict)
    with pytest.raises(SerializationError, match=r"ndarray.*objects"):
        serde.dumps_typed([np.array([object()], dtype=object)])
    for dtype in ("O", "|O", "O,f8"):
        with pytest.raises(UnsafeTypeError):
            serde.loads_typed(packed(ARRAY, dtype, [1], "C", b"12345678"))
    with pytest.raises(SerializationError, match="numpy"):
        serde.loads_typed(packed(ARRAY, "<f8", [1], "C", b"123456781"))


def test_an_array_without_numpy_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(SerializationError, match="numpy"):
        HarnessSerializer().loads_typed(packed(ARRAY, "<f8", [1], "C", b"12345678"))


# --- lone surrogates -----------------------------------------------------------------------------------

S = "a\ud800b\udfff"

SURROGATES = [
    S,
    "\ud83d\ude00",  # a pair of surrogates is not the character that UTF-16 means by it
    [S, [S]],
    {"k": S, "l": {"m": [S, "plain", 1, None]}},
    {S: 1, "b": S, 1: 2, None: 3, 1.5: 4, b"x": 5},
    {(S, 1): S, (1, (2, S)): 1, (1, 2): 3},
    {"outer": {S: {S: Point(S)}}},
    {S},
    frozenset({S}),
    deque([S]),
    HumanMessage(S),
    AIMessage(S, additional_kwargs={S: S}, tool_calls=[{"name": "t", "args": {"a": S}, "id": "1"}]),
    [HumanMessage("plain"), HumanMessage(S)],
    Point(S, {S: S}),
    Point(Point(Point(S)), S),
    Model(name=S, secret=SecretStr(S)),
    Pair(S, [S]),
    Tone.ODD,
    pathlib.Path("/tmp") / "\udcff",
    re.compile(S),
    Send("node", {"a": S}),
    Interrupt(value={"a": [S]}, id=S),
    _DeltaSnapshot([S]),
    [Colour.RED, Level.LOW, Tone.HIGH, S, datetime(2024, 1, 2), uuid.UUID(int=1)],
]


@pytest.mark.parametrize("value", SURROGATES, ids=ids)
def test_lone_surrogates_survive(value: Any) -> None:
    loaded = round_trip(value)
    assert loaded == value
    assert type(loaded) is type(value)
    if isinstance(value, dict):
        assert list(loaded) == list(value)
        assert list(map(type, loaded)) == list(map(type, value))
    assert round_trip({"a": [value]}) == {"a": [value]}


@pytest.mark.parametrize("value", SURROGATES, ids=ids)
def test_lone_surrogates_survive_without_strictness(value: Any) -> None:
    assert round_trip(value, HarnessSerializer(strict_msgpack=False)) == value


def test_langgraphs_own_serializer_reads_them_too() -> None:
    value = {S: [HumanMessage(S), {(S, 1): S}]}
    assert JsonPlusSerializer().loads_typed(HarnessSerializer().dumps_typed(value)) == value


def test_strict_reads_lone_surrogates() -> None:
    value = {S: [HumanMessage(S)], (S,): 1}
    assert round_trip(value, HarnessSerializer(strict_msgpack=True)) == value


def test_other_keys_of_such_a_dict_are_written_as_ever() -> None:
    others = {date(2024, 1, 2): 1, Tone.HIGH: 2, uuid.UUID(int=1): 3, Level.LOW: 4, (1, date(2024, 1, 2)): 5}
    loaded = round_trip({**others, S: 6, Tone.ODD: 7})
    assert loaded == {**round_trip(others), S: 6, Tone.ODD.value: 7}


def test_str_and_container_subclasses_with_surrogates() -> None:
    class Text(str):
        __slots__ = ()

    class Items(list[Any]):
        pass

    class Mapping(dict[Any, Any]):
        pass

    assert round_trip(Items([Mapping({Text(S): Text(S)})])) == [{S: S}]


def test_the_representation_of_an_exception_survives() -> None:
    class OddError(Exception):
        def __repr__(self) -> str:
            return S

    assert round_trip([OddError()]) == [S]


def test_many_nested_surrogates_cost_no_more_than_linear_time() -> None:
    value = Point(S, S)
    for _ in range(60):
        value = Point(value, S)
    assert round_trip(value) == value


def test_nothing_is_changed_in_what_is_written() -> None:
    value = {S: [S, {"a": Point(S)}]}
    before = copy.deepcopy(value)
    HarnessSerializer().dumps_typed(value)
    assert value == before


# --- what cannot be written ----------------------------------------------------------------------------


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


class Failing(BaseModel):
    def model_dump(self, **options: Any) -> Any:
        raise LookupError("on purpose")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (object(), "object"),
        ([{"a": Point(1j)}], "complex"),
        (Point(Point(function)), "function"),
        ([S, Point(lambda: None)], "function"),
        (2**64, "int.*64-bit"),
        (-(2**63) - 1, "int.*64-bit"),
        (Point({"a": 2**64}), "64-bit"),
        ({frozenset([1]): 1}, "dict.*key"),
        ({S: 1, frozenset([1]): 2}, "key"),
        (endless(), "list.*deeply"),
        ([Failing()], "Failing.*on purpose"),
    ],
)
def test_what_cannot_be_written_is_an_error(value: Any, words: str) -> None:
    with pytest.raises(SerializationError, match=words) as caught:
        HarnessSerializer().dumps_typed(value)
    assert isinstance(caught.value.__cause__, Exception)
