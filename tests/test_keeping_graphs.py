"""Real graphs on threads that are kept short: runs don't notice, and every survivor can be gone on from."""

from __future__ import annotations

from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from test_engine_travel import (
    FEW,
    NEW,
    OLD,
    SCRIPTS,
    Player,
    Source,
    dump,
    ids,
    on_each_store,
    rewound,
    roots_of,
    same_run,
    shuffled,
    unchanged,
    went_on,
)

from langgraph_harness_saver.engine import CheckpointEngine

every_script = on_each_store(*SCRIPTS, elsewhere=FEW)


@pytest.fixture
def engine(saver: Any) -> Any:
    return CheckpointEngine(saver).sync


class Kept(Source):
    """A thread that was kept to a policy while it was played; what is left of it is told by its steps."""

    def __init__(self, name: str, saver: Any) -> None:
        super().__init__(name, saver)
        whole = Source(name, InMemorySaver())
        steps = {whole.metadata(one)["step"]: number for one, number in whole.numbers.items()}
        assert len(steps) == len(whole.numbers)
        self.stops_of_whole = [stop.noted for stop in whole.stops]
        turns = {whole.metadata(one)["step"]: turn for one, turn in whole.turn_of.items()}
        self.numbers = {one: steps[self.metadata(one)["step"]] for one in ids(self)}
        self.turn_of = {one: turns[self.metadata(one)["step"]] for one in ids(self)}


def without_lineage(stops: list[Any]) -> list[Any]:
    """Leave out which checkpoint comes before: it has gone."""
    return [{**stop, "state": {**stop["state"], "parent": None}} for stop in stops]


@every_script
@pytest.mark.parametrize("retention", ["keep_last_n:1", "keep_milestones:3"])
def test_runs_do_not_notice_and_survivors_can_be_gone_on_from(name, retention, saver, engine):
    saver.retention = retention
    source = Kept(name, saver)
    assert without_lineage([s.noted for s in source.stops]) == without_lineage(source.stops_of_whole)
    saver.retention = None
    for number, point in enumerate(shuffled(source.points)):
        head = rewound(engine, source, point, source.thread_id)
        same_run(went_on(source.player(source.thread_id, point), head), source.expected(point))
        branch = engine.branch(point, f"{number}", source.thread_id)
        same_run(went_on(source.player(branch, point), point), source.expected(point))


@every_script
def test_collected_again_and_again_survivors_stay_as_they_were(name, saver, engine):
    source = Source(name, saver)
    engine.tag(source.points[1], "kept", source.thread_id)
    branch = engine.branch(source.points[2], "b", source.thread_id)
    before = dump(saver)
    while len(roots_of(dump(saver), source.thread_id)) > 3:
        left = len(roots_of(dump(saver), source.thread_id))
        report = engine.gc(source.thread_id, retention=f"keep_last_n:{max(1, left - 4)}")
        assert report.removed == left - len(roots_of(dump(saver), source.thread_id))
        unchanged(before, dump(saver))
        if not report.removed:
            break
    assert engine.gc(retention="keep_last_n:1").removed <= 1
    unchanged(before, dump(saver))
    left = [one for one in source.points if one in roots_of(dump(saver), source.thread_id)]
    assert {source.points[1], source.points[2], source.points[-1]} <= set(left)
    for point in left:
        head = rewound(engine, source, point, source.thread_id)
        same_run(went_on(source.player(source.thread_id, point), head), source.expected(point))
    same_run(went_on(source.player(branch, source.points[2])), source.expected(source.points[2]))


@on_each_store(*FEW, elsewhere=FEW[:1])
def test_a_thread_that_is_kept_short_may_be_rewound_and_branched_meanwhile(name, saver, engine):
    saver.retention = "keep_last_n:2"
    player = Player(name, saver)
    for count in range(4):
        player.step(OLD)
        point = ids(player)[-2:][count % 2 - 2 if count else -1]
        branch = Player(name, saver, engine.branch(point, f"{count}", player.thread_id), player.turn)
        branch.finish(NEW)
        assert len(ids(branch)) <= 3
        if count == 2:
            engine.rewind(point, player.thread_id)
    player.finish(OLD)
    assert saver.failures == 0
