"""An ordinary program of the OpenAI SDK: it lets the model call a function, and streams an answer.

It knows nothing of AIOS. In the middle of the stream it reads a line of the file named on its
command line, and waits for that where the file is a FIFO, as a program waits for many things.
"""

import json
import sys

from openai import OpenAI

client = OpenAI()
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two digits.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "integer", "minimum": 0, "maximum": 9},
                "b": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["a", "b"],
        },
    },
}
messages = [
    {"role": "system", "content": "You add."},
    {"role": "user", "content": "What is 1 + 2?"},
]
asked = client.chat.completions.create(
    model="gpt-4o", messages=messages, tools=[ADD], tool_choice="required", max_tokens=400
)
said = asked.choices[0].message
messages.append(said.model_dump(exclude_none=True))
for call in said.tool_calls:
    digits = json.loads(call.function.arguments)
    result = json.dumps(digits["a"] + digits["b"])
    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    print(call.function.name, call.function.arguments, result, flush=True)
stream = client.chat.completions.create(
    model="fake",
    messages=messages,
    max_tokens=800,
    stream=True,
    temperature=0.7,
    seed=5,
    logit_bias={"256": -100},  # it does not end by itself
)
text = ""
for chunk in stream:
    if not text and chunk.choices[0].delta.content:
        print("HALFWAY", flush=True)
        with open(sys.argv[1]) as gate:
            gate.readline()
    text += chunk.choices[0].delta.content or ""
print(text)
