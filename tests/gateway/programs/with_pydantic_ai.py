"""pydantic-ai: an agent whose answer is an object, with a tool."""

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel


class Verdict(BaseModel):
    sure: bool


agent = Agent(OpenAIChatModel("gpt-4o"), output_type=Verdict, model_settings={"max_tokens": 400})
result = agent.run_sync("Are you sure?")
assert isinstance(result.output, Verdict)
assert result.usage.requests >= 1
