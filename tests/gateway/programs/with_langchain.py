"""LangChain: a model with a tool, a stream, and an answer in a given form."""

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Verdict(BaseModel):
    sure: bool


@tool
def stop(now: bool) -> str:
    """Stop the machine."""
    return "stopped"


model = ChatOpenAI(model="gpt-4o", temperature=0, max_tokens=300)
called = model.bind_tools([stop], tool_choice="any").invoke("Stop it.")
assert called.tool_calls and {call["name"] for call in called.tool_calls} == {"stop"}
told = [stop.invoke(call) for call in called.tool_calls]
whole = model.invoke([("user", "Stop it."), called, *told]).content
streamed = model.stream([("user", "Stop it."), called, *told])
assert whole and "".join(chunk.content for chunk in streamed) == whole
verdict = model.with_structured_output(Verdict, method="json_schema").invoke("Are you sure?")
assert isinstance(verdict, Verdict)
