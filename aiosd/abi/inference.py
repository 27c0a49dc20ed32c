"""System calls for inference, contexts and snapshots."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta

from aiosd.abi.call import Call, Cid, Count, Key, Name, Record, Text, syscall
from aiosd.abi.chat import Function as Function
from aiosd.abi.chat import Image as Image
from aiosd.abi.chat import ToolCall as ToolCall
from aiosd.abi.chat import Turn as Turn
from aiosd.abi.chat import TurnCall as TurnCall
from aiosd.abi.route import Features, MaxLatency, MaxPrice, MinContext, Route

Deadline = Annotated[
    float, Meta(ge=0, le=31_536_000, description="seconds until the partial text is returned")
]
Schema = Annotated[dict[str, Any], Meta(description="JSON Schema that the text must satisfy")]


POLICIES = ("error", "truncate", "slide", "summarize", "expand", "expand-yarn")
POLICY = ", ".join(POLICIES[:-1]) + f" or {POLICIES[-1]}"


class TokenUsage(Record, frozen=True):
    """Tokens of one request and what they cost.

    cached_tokens: of the prompt, those that need not be computed: they stand in its context
    already, or another one of the agent begins the same, or anyone's with a public system message.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    dollars: float = 0.0


class Timing(Record, frozen=True):
    """Seconds of one request: waiting is submission to commencement, turnaround to completion.

    The paper's section 5.2 defines both. first_token_s is submission to the first token.
    """

    waiting_s: float
    turnaround_s: float
    first_token_s: float = 0.0


class Beam(Record, frozen=True):
    """What a beam search has found: a text, its tokens, and how likely the model finds them.

    logprobs: of each token, and of the end where finish_reason is "stop". logprob: of all together.
    """

    text: str
    token_ids: list[int]
    logprobs: list[float]
    logprob: float
    finish_reason: str


class Recalled(Record, frozen=True):
    """A text that was put before a prompt. source: memory (with id) or storage (name, version)."""

    source: str
    text: str
    score: float
    id: int = 0
    name: str = ""
    version: int = 0


class Likely(Record, frozen=True):
    """A token that could have stood in another's place. data: the bytes that it stands for."""

    token_id: int
    logprob: float
    data: bytes


class Generation(Record, frozen=True):
    """The result of a generation. finish_reason is "stop", "length", "cancelled" or "calls".

    reason says why it was cancelled; it is "window" when a reply of finish_reason "length" ended
    because its context's window is full. context can be continued by a later request. exact says
    whether the core promises the tokens of a solo run. logprobs: of each token, when asked for;
    top_logprobs: of each, the likeliest ones in its place, the best first. beams: all that a beam
    search has found, the best first; text and token_ids are the best one's. recalled: what was put
    before the prompt, when asked for.

    calls: with tools, the calls that the model made, in order. text is its answer then, without the
    JSON around it, and "" where it has none; token_ids, logprobs and usage are of all rounds. With
    finish_reason "calls" the last of them are of functions, which the caller is to carry out.

    On a provider's core token_ids is empty, usage is the provider's own figures (at most what was
    reserved; where none came, the most it can be), and reason says too why a text is not whole.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    usage: TokenUsage
    timing: Timing
    context: int
    core: str
    request: int = 0
    reason: str = ""
    exact: bool = False
    parsed: Any = None
    route: str = ""
    logprobs: list[float] = []
    beams: list[Beam] = []
    recalled: list[Recalled] = []
    calls: list[ToolCall] = []
    top_logprobs: list[list[Likely]] = []


class Chunk(Record, frozen=True):
    """A piece of a streamed generation; index is the number of tokens before it.

    logprobs and top_logprobs: of each token, when asked for. request: its request's id. With tools
    there is a chunk for each round: calls are those that were made in it, with what came of them;
    text is the answer in the last one, and "" in the others.

    texts: with logprobs, what of the text is each token's (but for what is held back until it is a
    whole letter, or no stop string).

    pieces: on a provider's core, where tokens are not told, how many pieces of text it holds; index
    counts those.
    """

    text: str
    token_ids: list[int]
    index: int
    logprobs: list[float] = []
    request: int = 0
    calls: list[ToolCall] = []
    pieces: int = 0
    top_logprobs: list[list[Likely]] = []
    texts: list[str] = []


@syscall(
    70, reply=Generation, chunk=Chunk, errors="ENOSPC ENOENT ESRCH ENODEV EBUSY EDQUOT ENOMEM EPIPE"
)
class LlmGenerate(Call, frozen=True):
    """Generate text on a core: the scheduler decides when, the dispatcher where.

    Give a prompt (one user turn in the model's chat template; as it stands with raw) or messages.
    Without either, a context is continued where it stands.

    after: earlier requests, of the agent or of those below it, that must have ended first, however
    they end; those are as urgent meanwhile as this one is. Ids stand in replies and chunks.

    tools: the model may call these, as the caller may by execute_tool. In each round it either
    calls one, or several at the same time, and is shown what came of that, or it answers. What it
    writes is held to a grammar made of the tools' input schemas; arguments are validated before a
    tool runs, and an error goes to the model too. With a key, no call that is on record is made
    again. tools go with schema (of the answer), not with raw, grammar, stop or beams.

    functions: offered like tools and called under the same grammar, but never carried out here: the
    reply ends with finish_reason "calls", and the caller gives what came of them in turns of role
    tool (`call` says of which), be it on the same context or after the whole chat on a fresh one.
    The grammar holds to the types in their schemas where it can't hold to more: look before use.
    Where tools were called in that last round too, their results are the caller's to give as well.

    Turns of the user may show images; that needs a core with the feature vision. A context keeps
    its latest ones, 1 MiB of them; a line stands for others.
    """

    prompt: Annotated[
        str, Meta(max_length=4 << 20, description="the user's turn, at most 4 Mi characters")
    ] = ""
    messages: Annotated[list[Turn], Meta(max_length=4096, description="the turns of a chat")] = []
    raw: Annotated[bool, Meta(description="don't apply the chat template to prompt")] = False
    max_tokens: Annotated[
        int, Meta(ge=0, le=1_000_000, description="0: the agent's default, else the core's")
    ] = 0
    temperature: Annotated[float, Meta(ge=0, le=10, description="0 takes the likeliest token")] = (
        0.0
    )
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Meta(ge=0, le=1_000_000, description="0: off")] = 0
    min_p: Annotated[float, Meta(ge=0, le=1, description="0: off")] = 0.0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="makes sampling repeatable")] = 0
    stop: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=256)]],
        Meta(max_length=16, description="strings that end the text, and are not part of it"),
    ] = []
    stream: Annotated[bool, Meta(description="send chunks as they come")] = False
    context: Annotated[int, Meta(ge=0, description="context to continue; 0: a fresh one")] = 0
    core: Annotated[
        str, Meta(max_length=64, description="name of the core; empty: any that fits")
    ] = ""
    needs: Annotated[
        str, Meta(max_length=64, description="capability class: local, frontier; empty: any")
    ] = ""
    deadline: (
        Annotated[float, Meta(ge=0, description="seconds until the partial text is returned")]
        | None
    ) = None
    beams: Annotated[int, Meta(ge=1, le=64, description="width of a beam search; 1: none")] = 1
    schema: (
        Annotated[dict[str, Any], Meta(description="JSON Schema that the text must satisfy")] | None
    ) = None
    grammar: Annotated[
        str, Meta(max_length=65_536, description="GBNF grammar that the text must satisfy")
    ] = ""
    after: Annotated[
        list[Count], Meta(max_length=64, description="requests that must end first, however")
    ] = []
    tools: Annotated[
        list[Name], Meta(max_length=64, description="declared tools offered to the model")
    ] = []
    recall: Annotated[
        str,
        Meta(
            max_length=64, description="what is put before it: memory, storage, or memory,storage"
        ),
    ] = ""
    watermark: Annotated[
        bool, Meta(description="mark the text so that its origin can be traced")
    ] = False
    resume: Annotated[
        int, Meta(ge=0, description="with a key: index of the first token not yet received")
    ] = 0
    key: Key = ""
    frequency_penalty: Annotated[
        float,
        Meta(ge=-2, le=2, description="taken off a token's logit each time it was used; 0: off"),
    ] = 0.0
    presence_penalty: Annotated[
        float, Meta(ge=-2, le=2, description="taken off a used token's logit once; 0: off")
    ] = 0.0
    repeat_penalty: Annotated[
        float, Meta(gt=0, le=10, description="makes used tokens less likely by a factor; 1: off")
    ] = 1.0
    penalty_window: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="tokens that penalties look back at, the prompt's too; 0: all",
        ),
    ] = 64
    logit_bias: Annotated[
        dict[int, Annotated[float, Meta(ge=-100, le=100)]],
        Meta(max_length=1024, description="added to a token's logit, by token id"),
    ] = {}
    min_tokens: Annotated[
        int, Meta(ge=0, le=1_000_000, description="no end, and no stop string, before so many")
    ] = 0
    logprobs: Annotated[
        bool,
        Meta(
            description="report each token's log-probability, in the model's own distribution: "
            "before penalties, bias, a grammar and the temperature"
        ),
    ] = False
    window: Annotated[
        str,
        Meta(
            max_length=16,
            description="of a fresh context, what happens when its window is full: "
            f"{POLICY}; empty: as configured",
        ),
    ] = ""
    public: Annotated[
        bool,
        Meta(
            description="the leading system message is no secret: what was computed of it may "
            "serve requests of other agents that begin the same"
        ),
    ] = False
    tool_rounds: Annotated[
        int,
        Meta(ge=1, le=64, description="rounds of tool calls at most; then the model must answer"),
    ] = 8
    tool_choice: Annotated[
        str,
        Meta(
            max_length=64,
            description="auto: the model calls tools or answers; required: it must call one in "
            "each of its tool_rounds; none: it must answer; else the name of the one to call",
        ),
    ] = "auto"
    tool_answer: Annotated[
        bool,
        Meta(
            description="after tool_rounds have the model answer; else the reply comes with the "
            "calls of the last round, whose results the model has not read"
        ),
    ] = True
    tool_calls: Annotated[
        int, Meta(ge=1, le=8, description="calls that the model may make at the same time, at most")
    ] = 8
    functions: Annotated[
        list[Function],
        Meta(max_length=128, description="functions offered to the model, for the caller to run"),
    ] = []
    route: Route = ""
    features: Features = []
    min_context: MinContext = 0
    max_price: MaxPrice = None
    max_latency: MaxLatency = None
    top_logprobs: Annotated[
        int,
        Meta(ge=0, le=20, description="with logprobs: of each token, so many of the likeliest too"),
    ] = 0


class Embeddings(Record, frozen=True):
    """One vector per text, all of one dimension, of unit length. core: "" when the embedder did."""

    vectors: list[list[float]]
    model: str
    tokens: int
    core: str = ""


@syscall(71, reply=Embeddings, errors="ENODEV")
class LlmEmbed(Call, frozen=True):
    """Turn texts into vectors."""

    texts: Annotated[list[Text], Meta(min_length=1, max_length=1024)]
    core: Annotated[
        str,
        Meta(max_length=64, description="name of a core that embeds; empty: [memory]'s embedder"),
    ] = ""


class Watermark(Record, frozen=True):
    """What was found in a text. marked: z is above 4, which chance reaches once in 30,000 texts.

    z: standard deviations by which green tokens outnumber what chance explains; p: the probability
    of that without a mark. pairs: neighbours that were looked at, each once; green: of these.
    """

    marked: bool
    z: float
    p: float
    tokens: int
    pairs: int
    green: int
    core: str


@syscall(80, reply=Watermark, errors="ENOENT ENODEV", since=2)
class DetectWatermark(Call, frozen=True):
    """Look for this kernel's watermark (llm_generate's `watermark`) in a text, or in token ids.

    It is found in texts of a model by a core with that model. A text is read as tokens again, which
    may differ a little from those that were generated.
    """

    text: Annotated[str, Meta(max_length=1 << 18, description="at most 262,144 characters")] = ""
    token_ids: Annotated[
        list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(max_length=65_536)
    ] = []
    core: Annotated[
        str, Meta(max_length=64, description="name of a core with the model; empty: any")
    ] = ""


class ContextTurn(Record, frozen=True):
    """A prompt (role user) or a reply (assistant) of a context, or part of one.

    Turns count from the context's first, 1. summarized: it stands in the window no more but in a
    summary, and is shown as it was; a long turn can be both, and comes in parts then.
    """

    number: int
    role: str
    text: str
    token_ids: list[int]
    summarized: bool = False


class Context(Record, frozen=True):
    """A context: the tokens that a model has read for an agent, and where their KV is.

    tier: slot, ram, disk or tokens. kv: how many of the tokens have their KV held. exact: whether
    its KV came to be as in a solo run. ram and disk: bytes in each; bytes: those in memory.
    shared: tokens at its beginning that were taken over from another one. snapshots: how many
    points it can go back to. note: what was lost of its KV last, and what it went back to. limit:
    tokens that its window holds; policy: what happens when it is full. length: tokens that it has
    read and written in its life, those that are no more in its window too. slid, truncated,
    summarized, expanded: how often each has happened to it.
    """

    cid: int
    aid: int
    core: str
    tier: str
    tokens: int
    kv: int
    limit: int
    bytes: int
    slot: int
    policy: str
    exact: bool
    created: float
    used: float
    shared: int = 0
    busy: bool = False
    ram: int = 0
    disk: int = 0
    snapshots: int = 0
    note: str = ""
    length: int = 0
    slid: int = 0
    truncated: int = 0
    summarized: int = 0
    expanded: int = 0
    turns: list[ContextTurn] = []


@syscall(72, reply=list[Context], needs="context", errors="ESRCH")
class ListContexts(Call, frozen=True):
    """List contexts: the caller's own, or those of an agent it may look into."""

    aid: Annotated[int, Meta(ge=0, description="agent id; 0: all that the caller may see")] = 0


@syscall(73, reply=Context, needs="context", errors="ENOENT")
class GetContext(Call, frozen=True):
    """Describe one context: its length, its limit and what happens when it is full.

    Shows turns of it too, those that have been summarized as they were; not those that are gone.
    """

    context: Cid
    first_turn: Annotated[Count, Meta(description="first turn to show; 0: none")] = 0
    last_turn: Annotated[
        Count, Meta(description="last turn to show, at most 100 in all; 0: the first alone")
    ] = 0


@syscall(74, reply=Context, needs="context", errors="ENOENT")
class SetContext(Call, frozen=True):
    """Set what a context does when its window is full.

    error: a prompt that does not fit fails with ENOSPC, and a reply ends with finish_reason
    "length" and reason "window". The others make room, in the middle of a reply too. truncate: the
    oldest turns go, the system prompt stays, and what stays is computed anew. slide: the KV shifts;
    the first tokens stay (the system prompt when it is short) and the recent ones. summarize: the
    model compresses the oldest turns, for which the agent is charged; get_context shows them as
    they were. expand: the context moves to a larger slot class of its core, up to the length that
    the model was trained for; expand-yarn: beyond that too. A beam search ends with its window.
    """

    context: Cid
    policy: Annotated[str, Meta(max_length=16, description=POLICY)]


@syscall(75, reply=Context, needs="context", errors="ENOENT EBUSY ENOMEM")
class ExpContext(Call, frozen=True):
    """Move a context to a window of at least this many tokens, on a larger slot class of its core.

    Its KV moves with it; beyond the length that the model was trained for it is computed anew.
    """

    context: Cid
    tokens: Annotated[int, Meta(ge=1, le=1 << 24)]
    key: Key = ""
    yarn: Annotated[
        bool, Meta(description="beyond the trained length too, its positions scaled by YaRN")
    ] = False


@syscall(76, reply=None, needs="context", errors="ENOENT EBUSY")
class ClrContext(Call, frozen=True):
    """Forget a context and free what it holds."""

    context: Cid


class Snapshot(Record, frozen=True):
    """A named point of a context that it can go back to."""

    id: int
    cid: int
    name: str
    tokens: int
    bytes: int
    created: float


@syscall(77, reply=Snapshot, needs="context", errors="ENOENT ENOSPC EDQUOT")
class GenSnapshot(Call, frozen=True):
    """Mark the present state of a context, in the middle of a generation too."""

    context: Cid
    name: Annotated[str, Meta(max_length=64)] = ""
    key: Key = ""


@syscall(78, reply=Context, needs="context", errors="ENOENT EBUSY")
class GenRestore(Call, frozen=True):
    """Take a context back to a snapshot."""

    context: Cid
    snapshot: Annotated[int, Meta(ge=0, description="snapshot id; 0: the newest")] = 0
    key: Key = ""


@syscall(79, reply=list[Snapshot], needs="context", errors="ENOENT")
class ListSnapshots(Call, frozen=True):
    """List the snapshots of a context, or of all contexts of an agent."""

    context: Annotated[int, Meta(ge=0)] = 0
    aid: Annotated[int, Meta(ge=0)] = 0
