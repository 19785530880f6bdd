"""The errors that this library raises, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class HarnessError(Exception):
    """Base of every error that this library raises on purpose."""


class InvalidConfigError(HarnessError, ValueError):
    """A configuration, a URL or a `RunnableConfig` that cannot be used as it is."""


class CheckpointNotFoundError(HarnessError, LookupError):
    """No checkpoint is stored under the given thread, namespace and id."""


class AmbiguousCheckpoint(HarnessError):  # noqa: N818
    """Several threads hold a checkpoint of this id, and none was named."""

    def __init__(self, checkpoint_id: str, thread_ids: Sequence[str]) -> None:
        names = ", ".join(map(repr, thread_ids))
        super().__init__(
            f"checkpoint {checkpoint_id!r} is in threads {names}: say which one is meant with thread_id="
        )
        self.checkpoint_id = checkpoint_id
        self.thread_ids = tuple(thread_ids)


class SerializationError(HarnessError, TypeError):
    """A value that the serializer cannot write or cannot read back safely."""


class UnsafeTypeError(SerializationError):
    """A stored value names a type that the loading policy does not construct.

    `module` and `name` are the type's, as stored.
    """

    def __init__(self, module: str, name: str, message: str) -> None:
        super().__init__(message)
        self.module = module
        self.name = name


class SnapshotTooLargeError(HarnessError, ValueError):
    """A snapshot takes more than `SnapshotConfig.max_snapshot_size_mb`; nothing of it is stored.

    `sizes` are the bytes by channel, largest first, `limit` is what all of them may take.
    """

    def __init__(self, thread_id: str, sizes: Mapping[str, int], limit: int) -> None:
        self.sizes = dict(sorted(sizes.items(), key=lambda item: -item[1]))
        self.limit = limit
        told = ", ".join(f"{channel!r} {size:,}" for channel, size in self.sizes.items())
        super().__init__(
            f"a snapshot of thread {thread_id!r} takes {sum(sizes.values()):,} bytes, and "
            f"max_snapshot_size_mb allows {limit:,}; by channel: {told}. Keep large values elsewhere and "
            "their names in the state, or allow more"
        )


class StoreError(HarnessError):
    """A store could not do its work; the driver's own error is in `__cause__`."""


class StoreUnavailableError(StoreError):
    """A server can't be reached, or didn't answer in time; what was to be written may or may not be there."""


class StoreFullError(StoreError):
    """A server has no room for more; what was to be written is not there."""


class NotReplicatedError(StoreError):
    """What was to be written is there, but on fewer replicas than were asked for."""


class StoreNotOpenError(StoreError):
    """The store has been closed."""


class SchemaError(StoreError):
    """What is in the database is not a schema that this version can use."""


class CorruptCheckpointError(StoreError):
    """Stored bytes do not decode to what was put."""


class EntangledError(StoreError):
    """A thread shares bytes with others of its family, so it can't just be dropped.

    Stores raise it, and the saver deletes the thread with care instead.
    """


class BranchExistsError(StoreError):
    """A thread has a branch of that name already."""


class HeadMovedError(StoreError):
    """A conditional put found another checkpoint at the head of its thread."""

    def __init__(self, expected: str | None, actual: str | None) -> None:
        super().__init__(
            f"expected checkpoint {expected!r} at the head, found {actual!r}: another run has "
            "written to this thread; read its latest state and run again"
        )
        self.expected = expected
        self.actual = actual
