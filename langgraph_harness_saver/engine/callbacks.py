"""A callback handler that records tool and LLM calls as events."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import BaseMessage, ToolMessage
from langchain_core.outputs import Generation, LLMResult

from langgraph_harness_saver.engine.events import Event
from langgraph_harness_saver.engine.places import current_place, guessed_place, stopped
from langgraph_harness_saver.engine.recorder import EventRecorder
from langgraph_harness_saver.engine.told import MOST_BYTES, PROMPT_BYTES, told, told_prompt
from langgraph_harness_saver.eventlog import EventCounts

TOOL_CALL, LLM_CALL = "tool_call", "llm_call"
_RETRY = "retry:attempt:"
_ERROR_LENGTH = 2000
_USAGE = {
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "total_tokens": "total_tokens",
}


@dataclass(slots=True)
class _Call:
    """One that is under way."""

    event: Event
    input: Any
    begun: float


class EventCallbacks(BaseCallbackHandler):
    """Records every tool and LLM call inside a node as an event of the step.

    One handler serves any number of runs at once, sync and async, in any thread. What is called outside of a
    graph's node, or in a run without a thread, is not recorded. Nothing that it does slows a call by more
    than looking at its input and output, or makes one fail.

    Inputs and outputs are stored as JSON has them, so whatever secrets they hold are stored, too: with an
    `EncryptedSerializer` encrypted, as all else is.
    """

    # In the run's own context and in its order; nothing here waits.
    run_inline = True

    def __init__(
        self,
        recorder: EventRecorder,
        *,
        max_bytes: int | None = MOST_BYTES,
        max_prompt_bytes: int | None = PROMPT_BYTES,
    ) -> None:
        """Record with `recorder`.

        Args:
            recorder: An engine's.
            max_bytes: How long an input or output may be as JSON text; of longer ones the beginning is kept.
            max_prompt_bytes: The same for the messages that a model is given: the newest are kept, as the
                older ones are in the checkpoint. None: all of them, with every call of a conversation anew.
        """
        self._recorder = recorder
        self._max_bytes = max_bytes
        self._max_prompt_bytes = max_prompt_bytes
        self._calls: dict[UUID, _Call] = {}

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until what was recorded is stored; False if some of it isn't, after `timeout` seconds."""
        return self._recorder.flush(timeout)

    async def aflush(self, timeout: float | None = None) -> bool:
        """Do what `flush` does."""
        return await self._recorder.aflush(timeout)

    @property
    def counts(self) -> EventCounts:
        """What became of events so far."""
        return self._recorder.counts

    # --- tools -------------------------------------------------------------------------------------

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note that a tool begins."""
        name = kwargs.get("name") or (serialized or {}).get("name") or "tool"
        self._begin(
            (TOOL_CALL, str(name)),
            lambda: told(input_str if inputs is None else inputs, self._max_bytes),
            (run_id, parent_run_id),
            tags,
            metadata,
            tool_call_id=kwargs.get("tool_call_id"),
        )

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        """Record a tool's call."""
        # What of a message isn't the answer is known from the call.
        answer = output.content if isinstance(output, ToolMessage) else output
        self._end(run_id, dict, answer)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Record a tool's call that has failed, or asks for an interrupt."""
        self._fail(run_id, error)

    # --- models ------------------------------------------------------------------------------------

    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note that a chat model begins."""
        prompt = messages[0] if len(messages) == 1 else messages
        self._model(serialized, prompt, (run_id, parent_run_id), tags, metadata, kwargs)

    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note that a model begins that completes texts."""
        self._model(serialized, prompts, (run_id, parent_run_id), tags, metadata, kwargs)

    def _model(
        self,
        serialized: Mapping[str, Any] | None,
        prompt: Sequence[Any],
        ids: tuple[UUID, UUID | None],
        tags: Sequence[str] | None,
        metadata: Mapping[str, Any] | None,
        options: Mapping[str, Any],
    ) -> None:
        given = options.get("invocation_params") or {}
        model = (metadata or {}).get("ls_model_name") or given.get("model") or given.get("model_name")
        name = options.get("name") or (serialized or {}).get("name") or model or "model"
        kind = (LLM_CALL, str(name))
        model = None if model is None else str(model)
        self._begin(
            kind, lambda: told_prompt(prompt, self._max_prompt_bytes), ids, tags, metadata, model=model
        )

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        """Record a model's call."""
        made = [_made(each) for some in response.generations for each in some]
        self._end(run_id, lambda: {"usage": _usage(response)}, made[0] if len(made) == 1 else made)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Record a model's call that has failed."""
        self._fail(run_id, error)

    # --- events ------------------------------------------------------------------------------------

    def _begin(
        self,
        kind: tuple[str, str],
        given: Callable[[], Any],
        ids: tuple[UUID, UUID | None],
        tags: Sequence[str] | None,
        metadata: Mapping[str, Any] | None,
        **more: Any,
    ) -> None:
        try:
            run_id, parent = ids
            place = current_place(metadata) or guessed_place(metadata, self._recorder.latest)
            if place is None:
                return
            names = tuple(map(str, tags or ()))
            event = place.event(
                *kind,
                attempt=_attempt(names) or place.attempt,
                run_id=str(run_id),
                parent_run_id=None if parent is None else str(parent),
                tags=names,
                **more,
            )
            call = _Call(event, given(), time.perf_counter())
            # A handler that is given twice is told of everything twice.
            self._calls.setdefault(run_id, call)
        except Exception as error:
            # Whatever it is, the run is not to fail of it.
            self._recorder.drop(error)

    def _end(self, run_id: UUID, facts: Callable[[], dict[str, Any]], output: Any = None) -> None:
        call = self._calls.pop(run_id, None)
        if call is None:
            return
        try:
            duration = time.perf_counter() - call.begun
            event = replace(call.event, duration=duration, **facts())
            self._recorder.hand_over(event, [call.input, told(output, self._max_bytes)])
        except Exception as error:
            # As above.
            self._recorder.drop(error)

    def _fail(self, run_id: UUID, error: BaseException) -> None:
        self._end(run_id, lambda: _failure(error))


def _failure(error: BaseException) -> dict[str, Any]:
    asks = stopped(error)
    if asks is not None:
        # Nothing is wrong.
        return {"paused": True} if asks else {}
    return {"error": f"{type(error).__name__}: {error}"[:_ERROR_LENGTH]}


def _made(generation: Generation) -> Any:
    return getattr(generation, "message", None) or generation.text


def _usage(response: LLMResult) -> dict[str, Any] | None:
    """Return how many tokens a call took, in LangChain's own words."""
    for some in response.generations:
        for each in some:
            usage = getattr(getattr(each, "message", None), "usage_metadata", None)
            if usage:
                return dict(told(usage))
    spent = (response.llm_output or {}).get("token_usage") or (response.llm_output or {}).get("usage") or {}
    found = {_USAGE.get(name, name): count for name, count in spent.items() if isinstance(count, int)}
    return found or None


def _attempt(tags: Sequence[str]) -> int | None:
    """Return which attempt a call is of something that is tried again within its node."""
    numbers = [tag.removeprefix(_RETRY) for tag in tags if tag.startswith(_RETRY)]
    return int(numbers[-1]) if numbers and numbers[-1].isdecimal() else None
