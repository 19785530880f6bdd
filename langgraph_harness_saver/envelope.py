"""The outermost layer of stored bytes: packing, compression, encryption."""

from __future__ import annotations

import threading
from typing import Any

import ormsgpack
import zstandard
from langgraph.checkpoint.serde.base import CipherProtocol

from langgraph_harness_saver.errors import SchemaError
from langgraph_harness_saver.serde import HarnessSerializer

COMPRESSED, BARE, LOGGED, SEALED = 1, 2, 3, 0x81
"""Format bytes. Adding one, or changing the dictionary of an old one, makes a new format."""

_COMPRESSED, _BARE, _LOGGED = bytes([COMPRESSED]), bytes([BARE]), bytes([LOGGED])
_LEVEL, _BARE_LEVEL = 3, 1
_BARE_BYTES = 1 << 14
"""From this size on, compressing pays even where memory is all that it saves."""

_PLAIN_DATA = (
    ormsgpack.OPT_NON_STR_KEYS
    | ormsgpack.OPT_PASSTHROUGH_DATACLASS
    | ormsgpack.OPT_PASSTHROUGH_DATETIME
    | ormsgpack.OPT_PASSTHROUGH_ENUM
    | ormsgpack.OPT_PASSTHROUGH_SUBCLASS
    | ormsgpack.OPT_PASSTHROUGH_UUID
)
_ANY_DATA = HarnessSerializer(strict_msgpack=True)


def _message(kind: bytes, name: bytes, rest: bytes) -> bytes:
    return (
        b"\x05\x94\xbclangchain_core.messages." + kind + b"\xab" + name + b"\x89\xa7content\xd9"
        b"\xb1additional_kwargs\x80\xb1response_metadata\x80\xa4type" + rest
    )


DICTIONARY = b"".join(
    (
        b"\xaflanggraph.types\xa4Send\x92\xafInterrupt\x83\xa5value\xa2id\xafresponse_schema\xc0\xa7Command",
        b"__error__\xad__interrupt__\xaa__resume__\xaf__pregel_tasks\xac__previous__\xa7__end__\xaa__return__",
        b"\xafmodel_provider\xaamodel_name\xabstop_reason\xb2system_fingerprint\xadfinish_reason\xa4stop",
        b"\xaatool_calls\xabtoken_usage\xb1completion_tokens\xadprompt_tokens",
        b"\xb3input_token_details\xb4output_token_details\xaacache_read\xa9reasoning",
        b"\xaausage_metadata\x83\xacinput_tokens\xadoutput_tokens\xactotal_tokens",
        b"\x91\x84\xa4name\xa4args\x81\xa5query\xa2id\xd9\x1dcall_\xa4type\xa9tool_call\xb2invalid_tool_calls\x90",
        _message(b"system", b"SystemMessage", b"\xa6system\xa4name\xc0\xa2id\xd9$\xb3model_validate_json"),
        _message(
            b"tool",
            b"ToolMessage",
            b"\xa4tool\xa4name\xa2id\xc0\xactool_call_id\xd9\x1dcall_\xa8artifact\xc0\xa6status\xa7success"
            b"\xb3model_validate_json",
        ),
        b"updated_channels\x92\xb1branch:to:tools\xafbranch:to:agent\xafbranch:to:model\x91\xa8messages",
        b"\x84\xa9__input__\x80\xa9__start__\x81\xa9__start__\x00\xa5agent\x81\xafbranch:to:agent\x01",
        _message(b"human", b"HumanMessage", b"\xa5human\xa4name\xc0\xa2id\xd9$\xb3model_validate_json"),
        _message(
            b"ai",
            b"AIMessage",
            b"\xa2ai\xa4name\xc0\xa2id\xd9$\xaatool_calls\x90\xb2invalid_tool_calls\x90\xaeusage_metadata\xc0"
            b"\xb3model_validate_json",
        ),
        b"\x94\x00\xa7msgpack\xa8messages",
    )
)
"""What most bodies contain, so that small ones compress too. Part of the format: never change it."""


class _Context(threading.local):
    """Compressors may not be used by two threads at once."""

    def __init__(self) -> None:
        dictionary = zstandard.ZstdCompressionDict(DICTIONARY, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        self.compress, self.compress_fast = (
            zstandard.ZstdCompressor(dict_data=dictionary, compression_params=_parameters(level)).compress
            for level in (_LEVEL, _BARE_LEVEL)
        )
        self.decompress = zstandard.ZstdDecompressor(
            dict_data=dictionary, format=zstandard.FORMAT_ZSTD1_MAGICLESS
        ).decompress


def _parameters(level: int) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters.from_level(
        level,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_checksum=True,
        write_content_size=True,
        write_dict_id=False,
    )


_context = _Context()


class Envelope:
    """Compresses, and encrypts where there is a cipher.

    With `bare`, what is small stays as it is, and what isn't is compressed in half the time.
    """

    def __init__(self, cipher: CipherProtocol | None = None, *, bare: bool = False) -> None:
        self._cipher = cipher
        self._bare_bytes = _BARE_BYTES if bare else 0

    def seal(self, data: bytes) -> bytes:
        """Return the stored form."""
        if not self._bare_bytes:
            packed = _COMPRESSED + _context.compress(data)
        elif len(data) < self._bare_bytes:
            packed = _BARE + data
        else:
            packed = _COMPRESSED + _context.compress_fast(data)
        return packed if self._cipher is None else self._encrypt(self._cipher, packed)

    def seal_logged(self, data: bytes) -> bytes:
        """Return the stored form of what holds writes as logs: older releases don't know it, and say so."""
        packed = _LOGGED + _context.compress(data)
        return packed if self._cipher is None else self._encrypt(self._cipher, packed)

    @staticmethod
    def _encrypt(cipher: CipherProtocol, packed: bytes) -> bytes:
        name, ciphertext = cipher.encrypt(packed)
        encoded = name.encode()
        return b"%c%c%s%s" % (SEALED, len(encoded), encoded, ciphertext)

    def open(self, data: bytes) -> bytes:
        """Undo `seal`.

        Raises:
            ValueError: The bytes are damaged, or the key is another.
            SchemaError: They are of a format that this version doesn't know, or encrypted.
        """
        if not data:
            raise ValueError("nothing is left of them")
        form = data[0]
        if form == SEALED:
            data = self._decrypt(data)
            form = data[0]
        if form == BARE:
            return data[1:]
        if form not in (COMPRESSED, LOGGED):
            raise SchemaError(
                f"a checkpoint is stored in format {form}, which a newer version of langgraph-harness-saver "
                f"wrote or damage made; this version reads formats {COMPRESSED} to {LOGGED}. Upgrade "
                "langgraph-harness-saver."
            )
        try:
            return _context.decompress(data[1:])
        except (zstandard.ZstdError, MemoryError) as error:
            # A damaged frame may claim any size.
            raise ValueError(str(error) or "too large to be true") from error

    def _decrypt(self, data: bytes) -> bytes:
        if self._cipher is None:
            raise SchemaError(
                "a checkpoint is encrypted; open the saver with the EncryptedSerializer that wrote it"
            )
        length = data[1]
        try:
            return self._cipher.decrypt(data[2 : 2 + length].decode(), data[2 + length :])
        except Exception as error:
            raise SchemaError(
                f"it doesn't decrypt ({error}); open the saver with the EncryptedSerializer and the key that "
                "wrote it. If these are right, it is damaged."
            ) from error


def pack(data: Any) -> bytes:
    """Pack plain data: None, bool, int, float, str, bytes, list, tuple, dict.

    Raises:
        TypeError: There is something else in it, or a string with lone surrogates.
    """
    return ormsgpack.packb(data, option=_PLAIN_DATA)


def pack_any(data: Any) -> bytes:
    """Pack plain data, any string, and LangGraph's own safe types."""
    try:
        return pack(data)
    except TypeError:
        return _ANY_DATA.dumps_typed(data)[1]


def unpack(data: bytes) -> Any:
    """Undo `pack` or `pack_any`.

    Raises:
        ValueError: The bytes are not msgpack.
    """
    try:
        return ormsgpack.unpackb(data, option=ormsgpack.OPT_NON_STR_KEYS)
    except ormsgpack.MsgpackDecodeError:
        # What isn't plain data stands in an extension.
        return _ANY_DATA.loads_typed(("msgpack", data))
