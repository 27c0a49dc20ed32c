"""What memory and storage know, put before a prompt, and shown."""

from __future__ import annotations

import errno

from aiosd.abi.inference import LlmGenerate, Turn
from aiosd.abi.memory import AddMemory
from aiosd.abi.process import RegisterAgent
from aiosd.abi.storage import StoWrite
from tests.daemon import Client, answer
from tests.stores.conftest import FAKE, Start
from tests.stores.test_working import code

CORE = '[[cores]]\nname = "c"\ndriver = "fake"\nmodel = "{}"\nn_ctx = 4096\n'
NOTE = "The lighthouse keeper is called Ada."


def prompt_tokens(client: Client, **request: object) -> int:
    """Return how long a request's prompt was for the model."""
    reply = client.call(LlmGenerate(max_tokens=1, **request))  # type: ignore[arg-type]
    count: int = reply.usage.prompt_tokens
    return count


def test_what_is_found_stands_before_the_question(start: Start) -> None:
    daemon = start(CORE + FAKE)
    with daemon.connect() as client, daemon.connect() as other:
        client.call(RegisterAgent(name="asker"))
        id = client.call(AddMemory(NOTE)).id
        client.call(StoWrite("book", b"Lighthouse lamps burn oil.", content_type="text/plain"))
        question = "Who keeps the lighthouse?"
        bare = prompt_tokens(client, prompt=question)
        reply = client.call(LlmGenerate(question, max_tokens=1, recall="memory,storage"))
        assert {(one.source, one.id, one.name) for one in reply.recalled} == {
            ("memory", id, ""),
            ("storage", 0, "book"),
        }
        assert {one.text for one in reply.recalled} == {NOTE, "Lighthouse lamps burn oil."}
        assert reply.usage.prompt_tokens >= bare + sum(len(one.text) for one in reply.recalled) // 8
        chat = [Turn("system", "Be brief."), Turn("user", question)]
        reply = client.call(LlmGenerate(messages=chat, max_tokens=1, recall="memory"))
        assert [one.text for one in reply.recalled] == [NOTE]
        other.call(RegisterAgent(name="other"))
        reply = other.call(LlmGenerate(question, max_tokens=1, recall="memory,storage"))
        assert reply.recalled == [] and reply.usage.prompt_tokens == bare
        assert code(other, LlmGenerate("x", recall="memory:club")) == errno.EPERM
        assert code(other, LlmGenerate("x", recall="dreams")) == errno.EINVAL


def test_without_an_embedder_words_are_enough(start: Start) -> None:
    daemon = start(CORE + '[memory]\nembedder = "none"\n')
    with daemon.connect() as client:
        client.call(RegisterAgent(name="asker"))
        client.call(AddMemory(NOTE))
        client.send(LlmGenerate("lighthouse", max_tokens=1, recall="memory"))
        reply = answer(client.read())
        assert [one["text"] for one in reply["recalled"]] == [NOTE]
