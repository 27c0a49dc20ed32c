"""The words between the kernel and a core worker.

One socketpair per worker. Each message is a 4-byte little-endian length and one msgpack array; the
first element is the message's tag. The kernel sends commands, the worker answers with events.
Commands take effect between two batches, in the order sent; only an `Ask` is
answered at once, from a thread of its own, since it touches the vocabulary and nothing else.

Who owns what: the kernel owns the truth about a sequence (its tokens and how each range of its KV
came to be) and can give it to a fresh worker at any time; the worker owns the slots and the KV in
them, and nothing that can't be rebuilt. A sequence is named by its context id (`cid`).

What must hold:
- a sequence's KV covers `tokens[:kv]`; `tokens[kv:]` is known but not computed yet;
- `work` covers `tokens[kv:]` without gaps, in order; a `PREFILL` run is computed in chunks cut at
  absolute multiples of the grid, a `DECODE` run one token a step; nothing is sampled before the
  last token of the last run has been computed;
- every token that is sampled is reported in a `Step` before the next one is.
"""

from __future__ import annotations

from typing import Final

import msgspec

PREFILL: Final = 0
DECODE: Final = 1
SHIFT: Final = 2

MAX_MESSAGE: Final = 256 << 20  # bytes; a command carries token ids, never KV


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Positions `start <= p < end` of a sequence and how their KV is computed.

    kind is PREFILL (grid chunks), DECODE (one position a step) or SHIFT: one position, decoded
    after the KV behind the first `keep` cells has moved up by `gone` cells, which are forgotten.
    Positions count on through a shift: what lies where in the KV is `runs.cells`.
    """

    kind: int
    start: int
    end: int
    keep: int = 0
    gone: int = 0


class Sampling(msgspec.Struct, frozen=True, array_like=True):
    """How the next token is chosen. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off.

    The random number of a position depends on (seed, position) alone. The penalties look at the
    last penalty_window tokens (0: at all), those of the prompt too: repeat_penalty divides a
    positive logit and multiplies another (1 is off), frequency_penalty is taken off for each time
    that a token stands there, presence_penalty once. logit_bias: added, by token. min_tokens: no
    end before so many. watermark: make green tokens likelier (`watermark.py`).
    logprobs: report each token's log-probability, in the distribution that the
    model gives, before all of this and before the temperature. top_logprobs: report those of the
    likeliest so many as well.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_penalty: float = 1.0
    penalty_window: int = 64
    logit_bias: dict[int, float] = {}
    min_tokens: int = 0
    logprobs: bool = False
    watermark: bool = False
    top_logprobs: int = 0


class Slide(msgspec.Struct, frozen=True, array_like=True):
    """How a sequence goes on when its `window` of cells is full: it shifts.

    The first `keep` cells stay, the next `gone` (a multiple of the grid, so that chunks stay on it)
    are forgotten. At `limit` tokens the sequence ends instead: its record can't grow for ever.
    """

    keep: int
    gone: int
    window: int
    limit: int


class Goal(msgspec.Struct, frozen=True, array_like=True):
    """What a generation is to produce: tokens after `prompt_len` are its output.

    `said` is output too, from before the sequence began anew (it is in the prompt, or forgotten).
    max_tokens counts both. `stop` strings end the text before them. sampled: tokens at the end of
    the prompt that an earlier generation chose: they are computed by decode. before: positions of
    the context that came before the sequence's first one, so that no position draws the same
    numbers again. slide: what to do in a full window; without it the generation ends there.
    grammar: what the output must satisfy, in GBNF as a `Compiled` gave it; "" for anything.
    beams: width of a beam search, 1 for none. It takes as many slots, reports no tokens, and ends
    with a `Found`; of sampling it heeds nothing, and it knows no stop, slide or grammar.
    """

    prompt_len: int
    max_tokens: int
    sampling: Sampling
    stop: list[str]
    sampled: int = 0
    said: list[int] = []
    before: int = 0
    slide: Slide | None = None
    grammar: str = ""
    beams: int = 1

    def output(self, tokens: list[int]) -> list[int]:
        """The generation's tokens so far, in a sequence of these tokens."""
        return self.said + tokens[self.prompt_len :]


class CoreSetup(msgspec.Struct, frozen=True, array_like=True):
    """How a worker opens its model. n_ctx is tokens per slot; kv types are ggml names.

    runner is "llama" or "fake"; for "fake", model is a JSON object of its options.
    verdict is an earlier exactness verdict for this model, build and CPU (JSON), or "" to probe.
    exact False skips the probe and takes the fastest setting. yarn: positions are scaled by YaRN:
    n_ctx may exceed what the model was trained for. quantize: type that the weights are converted
    to first ("": none), into a file in the directory `weights` (see weights.py).
    """

    runner: str
    model: str
    slots: int
    n_ctx: int
    grid: int
    threads: int
    gpu_layers: int
    kv_k: str
    kv_v: str
    exact: bool
    verdict: str
    yarn: bool = False
    quantize: str = ""
    weights: str = ""


# Commands: kernel to worker.


class Load(msgspec.Struct, frozen=True, array_like=True, tag="load"):
    """The first command: open the model. Answered by Loaded, or Failed and the worker's exit.

    secret: the key of the kernel's watermarks. again: the core has been open before.
    """

    setup: CoreSetup
    secret: bytes = b""
    again: bool = False


class Tokenize(msgspec.Struct, frozen=True, array_like=True, tag="tokenize"):
    """Turn a request into tokens; answered by Tokens or Refused, out of order.

    Give `messages` (a JSON list of abi.Turn) or `prompt`. raw takes the prompt as it stands;
    otherwise the model's chat template is applied. follow says that the tokens continue a context
    that already holds turns: the template's text between the last reply and the new turn is what is
    tokenized, and no BOS is added. tools: functions that the template offers (a JSON list of
    calls.Offered).
    """

    ticket: int
    prompt: str
    messages: str
    raw: bool
    follow: bool
    tools: str = ""


class Detokenize(msgspec.Struct, frozen=True, array_like=True, tag="detokenize"):
    """Ask for the bytes of tokens; answered by Pieces, out of order."""

    ticket: int
    tokens: list[int]


class Compile(msgspec.Struct, frozen=True, array_like=True, tag="compile"):
    """Check a grammar (GBNF), a JSON Schema or an offer of functions (calls.Offer, as JSON).

    Answered by Compiled or Refused, out of order.
    """

    ticket: int
    grammar: str
    schema: str
    offer: str = ""


class Admit(msgspec.Struct, frozen=True, array_like=True, tag="admit"):
    """Put a sequence in a slot (or take it up again where it is parked) and run it.

    tokens: all its tokens. kv: how many of them are taken from the KV source: a snapshot file at
    `path`, or the slot itself when path is "" and the sequence is resident (its KV longer than kv
    is rolled back), or nothing (path "" and kv 0). rank orders prefill: lower first.
    history: how tokens[:kv] came to be, so that the worker can say it in the snapshots it writes.
    held: positions that the file at `path` holds, if more than kv: those after kv are rolled back.
    """

    cid: int
    tokens: list[int]
    kv: int
    path: str
    work: list[Run]
    goal: Goal
    rank: int
    history: list[Run] = []
    held: int = 0


class Park(msgspec.Struct, frozen=True, array_like=True, tag="park"):
    """Stop running a sequence between two batches; it keeps its slot. Answered by Parked."""

    cid: int


class Evict(msgspec.Struct, frozen=True, array_like=True, tag="evict"):
    """Save a sequence's KV to the file at `path` ("" to drop it) and free its slot: Evicted.

    When the file can't be written the sequence stays, parked, and the answer is Kept.
    """

    cid: int
    path: str


class Save(msgspec.Struct, frozen=True, array_like=True, tag="save"):
    """Save a sequence's KV to the file at `path`; it stays where it is. Answered by Saved."""

    cid: int
    path: str


class Share(msgspec.Struct, frozen=True, array_like=True, tag="share"):
    """Take the first `kv` positions of a resident sequence from the snapshot file at `path`.

    kv is a multiple of the grid, and all of it was prefilled, whichever sequence it was taken of.
    Nothing happens when the sequence has got that far by itself, or has left. The sequence is Lost
    when the file does not hold that.
    """

    cid: int
    path: str
    kv: int


class Rank(msgspec.Struct, frozen=True, array_like=True, tag="rank"):
    """Change a resident sequence's rank."""

    cid: int
    rank: int


class Quit(msgspec.Struct, frozen=True, array_like=True, tag="quit"):
    """Leave at once with status 0."""


class Detect(msgspec.Struct, frozen=True, array_like=True, tag="detect"):
    """Look for the kernel's watermark in tokens, or in a text; answered by Detected."""

    ticket: int
    text: str
    tokens: list[int]


class Embed(msgspec.Struct, frozen=True, array_like=True, tag="embed"):
    """Ask a worker that embeds for the vectors of texts; answered by Embedded or Refused."""

    ticket: int
    texts: list[str]


Ask = Tokenize | Detokenize | Compile | Detect | Embed
Command = Load | Ask | Admit | Park | Evict | Save | Share | Rank | Quit


# Events: worker to kernel.


class Loaded(msgspec.Struct, frozen=True, array_like=True, tag="loaded"):
    """The model is open.

    exact: True, False, or None when the probe was skipped. verdict (JSON) is to be remembered.
    kv_bytes_per_token: bytes of one token's KV in a snapshot. fingerprint names model file,
    llama.cpp build and CPU features: KV moves only between equal fingerprints. shifts: whether its
    KV can be shifted. rolls_back: whether a slot's last positions can be taken off it. calls: how
    its chat template writes calls (calls.Style, as JSON), "" where it knows none.
    """

    name: str
    fingerprint: str
    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    slots: int
    grid: int
    chat_template: bool
    exact: bool | None
    setting: str
    verdict: str
    kv_bytes_per_token: int
    rss: int
    seconds: float
    shifts: bool = False
    rolls_back: bool = True
    calls: str = ""


class Opening(msgspec.Struct, frozen=True, array_like=True, tag="opening"):
    """A sign of life: the model is still being opened, which gets on."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The model could not be opened: an errno and a sentence for the user."""

    errno: int
    message: str


class Tokens(msgspec.Struct, frozen=True, array_like=True, tag="tokens"):
    """Answer to Tokenize.

    Of a chat that begins a context: the first `head` tokens are its system prompt, such that a
    later turn may follow them; without a system prompt the first `lead` tokens of a later turn
    close the turn before it, and have no place where that has gone.
    """

    ticket: int
    tokens: list[int]
    head: int = 0
    lead: int = 0


class Pieces(msgspec.Struct, frozen=True, array_like=True, tag="pieces"):
    """Answer to Detokenize: the bytes of each token, none for control tokens."""

    ticket: int
    pieces: list[bytes]


class Compiled(msgspec.Struct, frozen=True, array_like=True, tag="compiled"):
    """Answer to Compile: a grammar for goals to name."""

    ticket: int
    grammar: str


class Detected(msgspec.Struct, frozen=True, array_like=True, tag="detected"):
    """Answer to Detect: how many tokens there were, and what `watermark.Count` has counted."""

    ticket: int
    tokens: int
    pairs: int
    green: int


class Embedded(msgspec.Struct, frozen=True, array_like=True, tag="embedded"):
    """Answer to Embed: vectors of unit length, as float32 one after the other."""

    ticket: int
    vectors: bytes
    tokens: int


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """An Ask that can't be done: an errno and a sentence."""

    ticket: int
    errno: int
    message: str


class Token(msgspec.Struct, frozen=True, array_like=True):
    """One sampled token: index in the sequence's tokens, and the text that became final with it.

    text is valid UTF-8 with stop strings and incomplete characters held back; it may be empty.
    finish is "" while the generation goes on, else "stop", "length" or "window": there is no cell
    left to go on in, and `tail` is the text that would be final if it ended here. A token that ends
    the generation by being an end-of-text token has id but is not part of the sequence (kept
    False). logprob: see Sampling.logprobs; 0 unless asked for. top: the likeliest tokens in its
    place, with what each stands for.
    """

    cid: int
    index: int
    token: int
    text: str
    finish: str
    kept: bool
    logprob: float = 0.0
    tail: str = ""
    top: list[tuple[int, float, bytes]] = []


class Beam(msgspec.Struct, frozen=True, array_like=True):
    """What a beam search has found: see `beams.Branch`. text: of all its tokens."""

    tokens: list[int]
    logprobs: list[float]
    score: float
    text: str
    finish: str


class Begun(msgspec.Struct, frozen=True, array_like=True, tag="begun"):
    """A decode step begins that is the first of these sequences since they were admitted."""

    cids: list[int]


class Step(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """One batch: runs computed (sequence, kind, start, end), tokens sampled, its time.

    seconds: whole step; device_seconds: inside llama_decode. searched: rows computed for beam
    searches, by sequence.
    """

    computed: list[tuple[int, int, int, int]]
    tokens: list[Token]
    seconds: float
    device_seconds: float
    searched: list[tuple[int, int]] = []


class Found(msgspec.Struct, frozen=True, array_like=True, tag="found"):
    """A beam search is over, the best first; its sequence stays in one slot, `kv` computed.

    What was found is not part of the sequence yet.
    """

    cid: int
    beams: list[Beam]
    kv: int


class Parked(msgspec.Struct, frozen=True, array_like=True, tag="parked"):
    """A sequence is no longer run; it stays in its slot with `kv` positions computed."""

    cid: int
    kv: int


class Evicted(msgspec.Struct, frozen=True, array_like=True, tag="evicted"):
    """A sequence has left its slot; `path` holds kv positions in size bytes, or is ""."""

    cid: int
    path: str
    kv: int
    size: int
    seconds: float


class Saved(msgspec.Struct, frozen=True, array_like=True, tag="saved"):
    """A copy of a sequence's KV is in the file at `path`; "" and why when it could not be made."""

    cid: int
    path: str
    kv: int
    size: int
    seconds: float
    errno: int = 0
    message: str = ""


class Kept(msgspec.Struct, frozen=True, array_like=True, tag="kept"):
    """A sequence that was to leave its slot for the file at `path`, which can't be written.

    It is parked in its slot with `kv` positions; the file holds nothing.
    """

    cid: int
    path: str
    kv: int
    errno: int
    message: str


class Restored(msgspec.Struct, frozen=True, array_like=True, tag="restored"):
    """A sequence's KV was taken from the file at `path`: its bytes, verified, and the time."""

    cid: int
    path: str
    size: int
    seconds: float


class Placed(msgspec.Struct, frozen=True, array_like=True, tag="placed"):
    """Where sequences sit now, (cid, slot): sent when it changed, after admission or compaction."""

    slots: list[tuple[int, int]]


class Lost(msgspec.Struct, frozen=True, array_like=True, tag="lost"):
    """A sequence could not go on (restore failed, decode refused); its slot is free.

    path: the snapshot that is at fault, "" when none is.
    """

    cid: int
    errno: int
    message: str
    path: str = ""


Answer = Tokens | Pieces | Compiled | Detected | Embedded | Refused
Moved = Parked | Evicted | Saved | Kept | Restored | Placed
Event = Opening | Loaded | Failed | Answer | Begun | Step | Found | Moved | Lost

encode_command = msgspec.msgpack.Encoder().encode
encode_event = encode_command
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_event = msgspec.msgpack.Decoder(Event).decode
