"""smolagents: an agent that takes one step with its tools."""

from smolagents import OpenAIServerModel, Tool, ToolCallingAgent
from smolagents.memory import ActionStep


class Stop(Tool):
    name = "stop"
    description = "Stop the machine."
    inputs = {"now": {"type": "boolean", "description": "at once"}}
    output_type = "string"

    def forward(self, now: bool) -> str:
        return "stopped"


model = OpenAIServerModel(model_id="gpt-4o", max_tokens=400)
agent = ToolCallingAgent(tools=[Stop()], model=model, verbosity_level=0)
steps = agent.run("Stop it.", stream=True, max_steps=1)
taken = [step for step in steps if isinstance(step, ActionStep)]
assert taken and taken[0].error is None, taken[0].error
assert {call.name for call in taken[0].tool_calls} <= {"stop", "final_answer"}
