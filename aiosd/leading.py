"""Leading: which tokens of a prompt are the system message that its agent declares public.

Found without looking at the rest of the prompt, so that nothing secret can count as public by an
accident of a chat template: the system message is rendered by itself, and what both have in common
at their beginning is the answer.
"""

from __future__ import annotations

import errno

import msgspec

from aiosd.abi.inference import LlmGenerate, Turn
from aiosd.cores.local import LocalCore


async def system(core: LocalCore, args: LlmGenerate, tools: str = "") -> list[int]:
    """Return the tokens of a request's public system message and what a template puts after it.

    tools: those that the template offers in it, as protocol.Tokenize takes them.

    Empty when it has none, when it is not public, or when the model's template refuses it alone.
    Raises OSError when the core is gone.
    """
    if not args.public or not args.messages or args.messages[0].role != "system":
        return []
    message = args.messages[0]
    for turns in ([message], [message, Turn("user", "")]):
        try:
            read = await core.questions.read(
                "", msgspec.json.encode(turns).decode(), False, False, tools
            )
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        else:
            return read.tokens
    return []
