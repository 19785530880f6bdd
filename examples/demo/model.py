"""A chat model that plans by rule: no key, no network, the same answer every time."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage, ToolCall, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from tools import plural, result_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from langchain_core.callbacks import CallbackManagerForLLMRun
    from langchain_core.runnables import Runnable
    from langchain_core.tools import BaseTool

AT_ONCE = 2
SEARCHES = 3
INSTRUCTIONS = "Read the file part by part, take notes, then save a summary. Your notes so far:"


class PlanningModel(BaseChatModel):
    """Choose the next tool calls from the messages so far."""

    @property
    def _llm_type(self) -> str:
        return "planning"

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Tell the model which tools there are."""
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        reply = _plan(messages)
        known = {tool["function"]["name"] for tool in kwargs.get("tools", ())}
        if missing := {call["name"] for call in reply.tool_calls} - known:
            raise ValueError(f"the plan needs tools that were not bound: {', '.join(sorted(missing))}")
        return ChatResult(generations=[ChatGeneration(message=reply)])


def instructions(notes: list[str]) -> SystemMessage:
    """Write the system message that carries the notes."""
    return SystemMessage("\n".join([INSTRUCTIONS, *notes]))


def _plan(messages: list[BaseMessage]) -> AIMessage:
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for message in messages:
        if isinstance(message, ToolMessage) and message.name:
            results[message.name].append(result_of(message))
    if not results:
        return _ask("First the outline and the numbers.", _call("outline"), _call("word_statistics"))
    parts, read = results["outline"][0]["parts"], len(results["read_part"])
    terms = [word for word, _ in results["word_statistics"][0]["frequent"]][:SEARCHES]
    if read < parts:
        numbers = range(read + 1, min(read + AT_ONCE, parts) + 1)
        return _ask(f"{read} of {parts} parts read.", *(_call("read_part", number=n) for n in numbers))
    if terms and not results["search"]:
        return _ask("All read. Where are the main terms?", *(_call("search", term=term) for term in terms))
    summary = _summary(results, _notes(messages))
    if not results["save_summary"]:
        return _ask("The summary can be written.", _call("save_summary", text=summary))
    return AIMessage(summary)


def _ask(thought: str, *calls: ToolCall) -> AIMessage:
    return AIMessage(thought, tool_calls=list(calls))


def _call(tool: str, **args: Any) -> ToolCall:
    # A summary is too long for a name.
    label = [str(value) for key, value in args.items() if key != "text"]
    return ToolCall(name=tool, args=args, id=" ".join([tool, *label]), type="tool_call")


def _notes(messages: list[BaseMessage]) -> list[str]:
    return [
        line
        for message in messages
        if isinstance(message, SystemMessage)
        for line in message.text.splitlines()
        if line.startswith("- ")
    ]


def _summary(results: dict[str, list[dict[str, Any]]], notes: list[str]) -> str:
    numbers, headings = results["word_statistics"][0], results["outline"][0]["headings"]
    size = f"{plural(numbers['words'], 'word')} under {plural(len(headings), 'heading')}"
    terms = ", ".join(f"{hit['term']} ({plural(len(hit['lines']), 'line')})" for hit in results["search"])
    about = f" Mostly about {terms}." if terms else ""
    return "\n".join([f"{size}, {plural(numbers['minutes'], 'minute')} to read.{about}", "", *notes])
