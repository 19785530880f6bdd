"""An agent that calls tools and models in all ways there are, and counts what it has called."""

from __future__ import annotations

import operator
from collections import Counter
from typing import Annotated, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, AnyMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode
from langgraph.types import RetryPolicy, Send, interrupt
from typing_extensions import TypedDict

USAGE = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}


class State(TypedDict, total=False):
    messages: Annotated[list[AnyMessage], add_messages]
    notes: Annotated[list[str], operator.add]


class Scripted(BaseChatModel):
    """Gives its replies in turn, and again from the first."""

    replies: list[AIMessage]
    seen: Any

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _next(self) -> AIMessage:
        self.seen.append("model")
        return self.replies[(len(self.seen) - 1) % len(self.replies)]

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next())])


class Streaming(Scripted):
    """The same in pieces."""

    def _stream(self, messages: list[BaseMessage], *_: Any, **__: Any) -> Any:
        reply = self._next()
        for piece in str(reply.content):
            yield ChatGenerationChunk(message=AIMessageChunk(piece))
        yield ChatGenerationChunk(message=AIMessageChunk("", usage_metadata=USAGE))


class Agent:
    """Its graph, and what its tools and models have been asked: kind, name and outcome of each call."""

    def __init__(self, saver: Any, model: type[Scripted] = Scripted) -> None:
        self.saw: Counter[tuple[str, str, str]] = Counter()
        self.failures = 1
        self.models: list[Any] = []
        self.graph = self._graph(saver, model)

    def note(self, kind: str, name: str, outcome: str) -> None:
        self.saw[kind, name, outcome] += 1

    def _tools(self) -> list[Any]:
        @tool
        def search(query: str) -> str:
            """Search."""
            self.note("tool_call", "search", f"found {query}")
            return f"found {query}"

        @tool
        def book(place: str) -> str:
            """Book."""
            self.note("tool_call", "book", f"booked {place}")
            return f"booked {place}"

        @tool
        def check(number: int) -> int:
            """Fail at first."""
            if self.failures:
                self.failures -= 1
                self.note("tool_call", "check", "ConnectionError: try again")
                raise ConnectionError("try again")
            self.note("tool_call", "check", str(number + 1))
            return number + 1

        @tool
        def confirm(question: str) -> str:
            """Ask a person."""
            self.note("tool_call", "confirm", "paused")
            answer = interrupt(question)
            self.saw["tool_call", "confirm", "paused"] -= 1
            self.note("tool_call", "confirm", answer)
            return str(answer)

        return [search, book, check, confirm]

    def _graph(self, saver: Any, kind: type[Scripted]) -> Any:
        search, book, check, confirm = self._tools()
        calls = [
            {"name": "search", "args": {"query": "a"}, "id": "1"},
            {"name": "book", "args": {"place": "b"}, "id": "2"},
            {"name": "search", "args": {"query": "c"}, "id": "3"},
        ]
        asks = AIMessage("", tool_calls=calls, usage_metadata=USAGE)
        asking = Scripted(replies=[asks], seen=self.models)
        telling = kind(replies=[AIMessage("done", usage_metadata=USAGE)], seen=self.models)

        def tell(state: State) -> State:
            return {"messages": [telling.invoke(state["messages"])]}

        def ask(state: State) -> State:
            return {"notes": [confirm.invoke({"question": "go?"})]}

        def spread(state: State) -> list[Send]:
            return [Send("each", {"notes": [word]}) for word in "xyz"]

        sub = StateGraph(State).add_node(ask).add_node(tell)
        sub.add_edge(START, "ask").add_edge("ask", "tell")
        graph = StateGraph(State)
        graph.add_node("model", lambda state: {"messages": [asking.invoke(state["messages"])]})
        graph.add_node("tools", ToolNode([search, book]))
        retries = RetryPolicy(retry_on=ConnectionError, initial_interval=0.001, jitter=False)
        graph.add_node("flaky", lambda _: {"notes": [str(check.invoke({"number": 1}))]}, retry_policy=retries)
        graph.add_node("sub", sub.compile())
        graph.add_node("each", lambda state: {"notes": [search.invoke({"query": state["notes"][0]})]})
        for one, other in ((START, "model"), ("model", "tools"), ("tools", "flaky"), ("flaky", "sub")):
            graph.add_edge(one, other)
        graph.add_conditional_edges("sub", spread, ["each"])
        return graph.compile(checkpointer=saver)

    @property
    def called(self) -> Counter[tuple[str, str, str]]:
        """All calls, those of models as well, without what came to nothing."""
        return +(self.saw + Counter({("llm_call", "model", ""): len(self.models)}))
