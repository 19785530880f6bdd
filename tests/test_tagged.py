"""A checkpoint is listed by its tag as by its metadata."""

from __future__ import annotations

import pytest
from helpers import id_of, thread
from langgraph.checkpoint.base import empty_checkpoint

from langgraph_harness_saver.engine import CheckpointEngine
from langgraph_harness_saver.errors import InvalidConfigError

pytestmark = pytest.mark.parametrize("store_kind", ["memory", "sqlite", "redis", "postgres"])


@pytest.fixture
def tagged(saver, door):
    """Three checkpoints, the second of them good."""
    ids = []
    config = thread("t", ns="")
    for step in range(3):
        config = door.call(saver, "put", config, empty_checkpoint(), {"source": "loop", "step": step}, {})
        ids.append(id_of(config))
    CheckpointEngine(saver).sync.tag(ids[1], "good", "t")
    return ids


def found(door, saver, config, **options):
    return [id_of(item.config) for item in door.collect(saver, "list", config, **options)]


def test_a_tag_is_found_with_whatever_else_is_asked(saver, door, tagged):
    for config in (thread("t"), thread("t", ns=""), thread("t", tagged[1], ns="")):
        assert found(door, saver, config, filter={"harness_tag": "good"}) == [tagged[1]]
    assert found(door, saver, thread("t"), filter={"harness_tag": "good", "step": 1}, limit=1) == [tagged[1]]
    assert found(door, saver, thread("t"), filter={"harness_tag": "good"}, before=thread("t", tagged[2])) == [
        tagged[1]
    ]


def test_nothing_is_found_where_something_disagrees(saver, door, tagged):
    good = {"harness_tag": "good"}
    assert found(door, saver, thread("t"), filter={**good, "step": 2}) == []
    assert found(door, saver, thread("t"), filter={"harness_tag": "bad"}) == []
    assert found(door, saver, thread("t", tagged[0]), filter=good) == []
    assert found(door, saver, thread("t", ns="inner"), filter=good) == []
    assert found(door, saver, thread("t"), filter=good, before=thread("t", tagged[1])) == []
    assert found(door, saver, thread("t"), filter=good, limit=0) == []
    assert found(door, saver, thread("other"), filter=good) == []


def test_its_metadata_name_the_tag(saver, door, tagged):
    [item] = door.collect(saver, "list", thread("t"), filter={"harness_tag": "good"})
    assert item.metadata == {"source": "loop", "step": 1, "harness_tag": "good"}
    assert door.call(saver, "get_tuple", thread("t", tagged[1])).metadata == {"source": "loop", "step": 1}


def test_a_tag_belongs_to_a_thread(saver, door, tagged):
    for config, name in ((None, "good"), (thread("t"), 7)):
        with pytest.raises(InvalidConfigError, match="a name within a thread"):
            found(door, saver, config, filter={"harness_tag": name})
