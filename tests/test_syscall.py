"""The dispatcher's promises, through the socket."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from aiosd.abi import LEVEL, wire
from aiosd.abi.inference import Generation, LlmGenerate, Timing, TokenUsage
from aiosd.abi.process import (
    Attach,
    ExitStatus,
    GetStatus,
    Kill,
    ListAgents,
    LogEvent,
    ResumeAgent,
    Status,
    Usage,
    Wait,
    Watched,
)
from aiosd.abi.system import Cancel, Hello, Ping, Sysinfo
from aiosd.abi.table import BY_NAME, TABLE
from aiosd.access import Access, Caller
from aiosd.session import Stream
from aiosd.syscall import Dispatcher
from tests.daemon import PATIENCE, Client, answer
from tests.door import Door

MAP = b"\x80"
PARTIAL = Generation("so far", [], "cancelled", TokenUsage(1, 1), Timing(0, 0), 1, "c")


class Handlers:
    """Handlers that do what a test needs."""

    def __init__(self) -> None:
        self.kills: list[str] = []
        self.waits = 0
        self.sent = 0
        self.ended: list[str] = []
        self.gate: asyncio.Event | None = None
        self.error: Exception = RuntimeError("a mistake of ours")

    def open(self) -> None:
        assert self.gate is not None
        self.gate.set()

    def sys_kill(self, caller: Caller, args: Kill) -> None:
        self.kills.append(args.signal)
        if args.signal == "FAIL":
            raise self.error

    def sys_resume_agent(self, caller: Caller, args: ResumeAgent) -> None:
        raise self.error

    async def sys_wait(self, caller: Caller, args: Wait) -> ExitStatus:
        self.waits += 1
        self.gate = self.gate or asyncio.Event()
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.ended.append("wait")
            raise
        return ExitStatus(args.aid, self.waits, None, "", 0.0, Usage())

    async def sys_attach(self, caller: Caller, args: Attach, stream: Stream) -> None:
        try:
            for number in range(args.aid):
                await stream.send(Watched(1, number, "x" * 1000))
                self.sent = number + 1
        finally:
            self.ended.append("attach")

    async def sys_llm_generate(
        self, caller: Caller, args: LlmGenerate, stream: Stream
    ) -> Generation:
        why: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        stream.on_cancel = why.set_result
        reason = await why
        self.ended.append(reason)
        return PARTIAL

    sys_llm_generate.keeps_keys = True  # type: ignore[attr-defined]

    def sys_log_event(self, caller: Caller, args: LogEvent) -> None:
        self.kills.append(args.kind)

    def sys_list_agents(self, caller: Caller, args: ListAgents) -> Any:
        return [b"x" * 1000] * args.limit

    def sys_get_status(self, caller: Caller, args: GetStatus) -> Status:
        return Status(args.aid, "S", "\udcff", "")


class Kin:
    """Agent 8 is another user's; every other agent is root's."""

    def uid_of(self, aid: int) -> int:
        return 1000 if aid == 8 else 0

    def lineage(self, aid: int) -> tuple[int, ...]:
        return ()


@pytest.fixture
def handlers() -> Handlers:
    return Handlers()


@pytest.fixture
def door(runtime_dir: Path, handlers: Handlers) -> Iterator[Door]:
    access = Access(owner=0)
    access.kin = Kin()
    with Door(runtime_dir, handlers, access=access, max_inflight=4) as door:
        yield door


@pytest.fixture
def client(door: Door) -> Client:
    return door.connect()


def refused(client: Client, number: int, body: bytes = MAP) -> tuple[int, str]:
    """Make a raw call that must fail; return errno and sentence."""
    wanted = client.send_raw(number, body)
    reply = client.read()
    assert reply.id == wanted
    assert reply.errno, msgspec.msgpack.decode(reply.body)
    return reply.errno, msgspec.msgpack.decode(reply.body)


def test_every_unbound_call_says_so(door: Door, client: Client) -> None:
    missing = client.call(Sysinfo()).missing
    assert len(missing) > 60
    for name in missing:
        number, sentence = refused(client, BY_NAME[name].number)
        assert (number, sentence) == (errno.ENOSYS, f"{name} has no handler in this kernel")
    number, sentence = refused(client, 4095)
    assert number == errno.ENOSYS
    assert "no system call has the number 4095" in sentence


def test_nothing_comes_before_hello_and_hello_comes_once(door: Door) -> None:
    client = door.connect(hello=False)
    for number in TABLE:
        if number:
            assert refused(client, number)[0] == errno.EPROTO
    client.call(Hello(level=LEVEL))
    client.call(Ping())
    with pytest.raises(OSError, match="once per connection"):
        client.call(Hello(level=LEVEL))


@pytest.mark.parametrize(
    ("level", "oldest", "blamed"), [(LEVEL + 1, 1, "kernel"), (LEVEL, LEVEL + 1, "caller")]
)
def test_levels_that_do_not_fit(runtime_dir: Path, level: int, oldest: int, blamed: str) -> None:
    with Door(runtime_dir, oldest=oldest) as door:
        client = door.connect(hello=False)
        with pytest.raises(OSError, match=f"the {blamed} is too old; upgrade") as raised:
            client.call(Hello(level=level))
        assert raised.value.errno == errno.EPROTO


def test_a_credential_makes_an_agent(door: Door) -> None:
    assert door.connect(credential="secret").welcome.aid == 7
    with pytest.raises(PermissionError, match="no such credential"):
        door.connect(credential="wrong")


def test_requests_sent_behind_a_hello_wait_for_it(door: Door) -> None:
    client = door.connect(hello=False)
    client.send(Hello(level=LEVEL, credential="secret"))
    client.send(Kill(1, "x" * 10, key="k" * 60))
    client.send_raw(BY_NAME["log_event"].number, b"\x82\xa4kind\xa1a\xa3key\xd9\x40" + b"k" * 64)
    assert [client.read().errno for _ in range(3)] == [0, errno.EPERM, 0]


@pytest.mark.parametrize(
    ("call", "body", "words"),
    [
        (
            "kill",
            {"aid": 1, "signal": "x" * 17},
            "kill: field 'signal': expected str of length <= 16",
        ),
        ("kill", {"aid": 0}, "field 'aid': expected int >= 1"),
        ("kill", {"aid": "1"}, "field 'aid': expected int, got str"),
        ("kill", {}, "field 'aid' is missing"),
        ("kill", {"aid": 1, "signle": "TERM"}, "unknown field 'signle', did you mean 'signal'"),
        ("kill", {"aid": 1, "zzz": 1}, "it has aid, signal, generation, key"),
        ("kill", [1], "the arguments: expected object, got array"),
        (
            "llm_generate",
            {"messages": [{"role": "user"}]},
            "field 'messages[0].content' is missing",
        ),
        ("wait", {"timeout": float("nan")}, "field 'timeout': nan is not finite"),
        ("wait", {"timeout": float("inf")}, "field 'timeout': inf is not finite"),
        ("llm_generate", {"deadline": float("-inf")}, "field 'deadline'"),
    ],
)
def test_wrong_arguments_are_named(client: Client, call: str, body: Any, words: str) -> None:
    number, sentence = refused(client, BY_NAME[call].number, msgspec.msgpack.encode(body))
    assert number == errno.EINVAL
    assert words in sentence
    assert sentence.endswith(f"see man 2aios {call}")


def nested(depth: int) -> bytes:
    """Return the body of a log_event whose data nests `depth` levels, itself included."""
    return b"\x82\xa4kind\xa1a\xa4data" + b"\x81\xa1a" * (depth - 1) + b"\xc0"


def test_nesting_is_bounded(client: Client, handlers: Handlers) -> None:
    number = BY_NAME["log_event"].number
    client.send_raw(number, nested(32))
    assert client.read().errno == 0
    for depth in (33, 500, 5_000, 100_000):
        code, sentence = refused(client, number, nested(depth))
        assert code == errno.EINVAL
        assert "log_event" in sentence
    for depth in (100_000, 300_000):
        assert refused(client, BY_NAME["ping"].number, b"\x91" * depth + b"\xc0")[0] == errno.EINVAL
    wide = (
        b"\x82\xa4kind\xa1a\xa4data\x81\xa1a\xdd" + (80_000).to_bytes(4, "big") + b"\x90" * 80_000
    )
    assert "more than 65536 values" in refused(client, number, wide)[1]
    assert handlers.kills == ["a"]


def test_a_damaged_body_costs_only_its_request(client: Client) -> None:
    for body in (
        b"\xc1",
        b"\x81",
        b"\x80\x80",
        b"\xd9\xff",
        b"\x81\xa7payload\xc6\xff\xff\xff\xff",
    ):
        number, sentence = refused(client, 1, body)
        assert number == errno.EINVAL
        assert sentence.startswith("ping: damaged msgpack")
    assert client.call(Ping(b"x")).payload == b"x"


def test_a_mistake_of_ours_is_logged_and_referred_to(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR), pytest.raises(OSError, match="internal error") as raised:
        client.call(ResumeAgent(1))
    assert raised.value.errno == errno.EIO
    reference = str(raised.value).rpartition("reference ")[2].rstrip(")")
    record = caplog.records[0]
    assert reference in record.getMessage()
    assert record.exc_info is not None
    with pytest.raises(OSError, match="internal error"):  # the answer can't be encoded
        client.call(GetStatus(1))
    client.call(Ping())


@pytest.mark.parametrize(
    ("error", "number", "sentence"),
    [
        (OSError(errno.ENOSPC, "no room"), errno.ENOSPC, "resume_agent: no room"),
        (ProcessLookupError("no agent 5"), errno.ESRCH, "resume_agent: no agent 5"),
        (TimeoutError(), errno.ETIMEDOUT, "resume_agent: ETIMEDOUT"),
        (FileNotFoundError(errno.ENOENT, "none", "/x\udcff"), errno.ENOENT, "none: /x\\udcff"),
        (OSError("resume_agent: what?"), errno.EIO, "resume_agent: internal error"),
        (msgspec.ValidationError("inside"), errno.EIO, "resume_agent: internal error"),
    ],
)
def test_errors_become_numbers_and_sentences(
    client: Client, handlers: Handlers, error: Exception, number: int, sentence: str
) -> None:
    handlers.error = error
    with pytest.raises(OSError, match=r"resume_agent|none") as raised:
        client.call(ResumeAgent(1))
    assert raised.value.errno == number
    assert sentence in str(raised.value.strerror)


def test_permission_comes_before_the_handler(door: Door, handlers: Handlers) -> None:
    agent = door.connect(credential="secret")
    agent.call(Kill(7))
    with pytest.raises(PermissionError, match="agent 7 has no rights over agent 8"):
        agent.call(Kill(8))
    assert handlers.kills == ["TERM"]


def test_requests_in_flight_are_bounded_and_their_ids_unique(client: Client) -> None:
    for _ in range(4):
        client.send(Wait())
    client.send(Wait())
    with pytest.raises(BlockingIOError, match=r"kernel\.max_inflight"):
        answer(client.read())
    client.call(Ping())  # what answers at once is not held up
    for call in ("kill", "ping"):
        client.next_id = 2
        assert "id 2 is in use" in refused(client, BY_NAME[call].number)[1]


def test_statistics_count_answers_and_errors(client: Client, handlers: Handlers) -> None:
    for _ in range(3):
        client.call(Ping())
    handlers.error = OSError(errno.ESRCH, "no")
    with pytest.raises(ProcessLookupError):
        client.call(ResumeAgent(1))
    calls = {row.name: row for row in client.call(Sysinfo()).calls}
    assert (calls["ping"].calls, calls["ping"].errors) == (3, 0)
    assert (calls["resume_agent"].calls, calls["resume_agent"].errors) == (1, 1)
    assert 0 < calls["ping"].slowest_s <= calls["ping"].seconds < PATIENCE


def test_an_answer_too_large_is_an_error(client: Client) -> None:
    with pytest.raises(OSError, match="ask for less") as raised:
        client.call(ListAgents(limit=2000))
    assert raised.value.errno == errno.EMSGSIZE
    client.call(Ping())


# Cancelling.


def test_cancel_ends_a_request(client: Client, handlers: Handlers) -> None:
    waiting = client.send(Wait())
    cancel = client.send(Cancel(waiting))
    replies = {reply.id: reply for reply in (client.read(), client.read())}
    assert replies[waiting].errno == errno.ECANCELED
    assert replies[cancel].errno == 0
    with pytest.raises(ProcessLookupError, match="may have ended"):
        client.call(Cancel(waiting))


def test_a_handler_may_end_with_what_it_has(client: Client, handlers: Handlers) -> None:
    request = client.send(LlmGenerate(prompt="x"))
    client.call(Ping())
    client.send(Cancel(request))
    replies = {reply.id: reply for reply in (client.read(), client.read())}
    assert answer(replies[request], Generation).text == "so far"


def test_a_lost_connection_cancels_its_requests(door: Door, handlers: Handlers) -> None:
    client = door.connect()
    client.send(LlmGenerate(prompt="x"))
    client.send(Wait())
    client.send(Attach(1 << 20))
    client.send(Ping())
    client.close()
    door.until(lambda: sorted(handlers.ended) == ["attach", "connection lost", "wait"])
    door.until(lambda: not door.dispatcher._flights and not door.dispatcher.sessions)


# Keys.


def test_a_key_gives_the_first_answer_again(door: Door, client: Client, handlers: Handlers) -> None:
    for _ in range(3):
        client.call(Kill(1, key="a"))
    assert handlers.kills == ["TERM"]
    again = door.connect()
    again.call(Kill(1, key="a"))
    assert handlers.kills == ["TERM"]
    with pytest.raises(OSError, match="used with other arguments"):
        again.call(Kill(1, "INT", key="a"))
    door.connect(credential="secret").call(Kill(7, key="a"))  # another owner's key
    again.call(Kill(1, key="b"))
    again.call(Kill(1))
    again.call(Kill(1))
    assert handlers.kills == ["TERM"] * 5


def test_a_failed_request_frees_its_key(client: Client, handlers: Handlers) -> None:
    handlers.error = OSError(errno.EAGAIN, "later")
    for _ in range(2):
        with pytest.raises(BlockingIOError, match="later"):
            client.call(Kill(1, "FAIL", key="a"))
    assert handlers.kills == ["FAIL", "FAIL"]


def test_a_key_in_flight_is_waited_for(door: Door, client: Client, handlers: Handlers) -> None:
    other = door.connect()
    client.send(Wait(1, key="w"))
    other.send(Wait(1, key="w"))
    given_up = other.send(Wait(1, key="w"))
    other.send(Cancel(given_up))
    assert {other.read().errno, other.read().errno} == {0, errno.ECANCELED}
    door.do(handlers.open)
    assert answer(client.read(), ExitStatus).code == 1
    assert answer(other.read(), ExitStatus).code == 1
    assert client.call(Wait(1, key="w")).code == 1
    assert handlers.waits == 1


def test_an_agents_keyed_request_outlives_its_connection(door: Door, handlers: Handlers) -> None:
    agent = door.connect(credential="secret")
    agent.send(Wait(7, key="w"))
    agent.call(Ping())
    agent.close()
    door.until(lambda: len(door.dispatcher.sessions) == 0)
    assert not handlers.ended
    back = door.connect(credential="secret")
    back.send(Wait(7, key="w"))
    back.call(Ping())
    door.do(handlers.open)
    assert answer(back.read(), ExitStatus).code == 1
    assert handlers.waits == 1


def test_a_persons_keyed_request_does_not(door: Door, handlers: Handlers) -> None:
    person = door.connect()
    person.send(Wait(1, key="w"))
    person.call(Ping())
    person.close()
    door.until(lambda: handlers.ended == ["wait"])


def test_a_key_whose_work_is_being_cancelled_is_to_be_asked_again(
    client: Client, handlers: Handlers
) -> None:
    first = client.send(Wait(1, key="w"))
    client.call(Ping())
    number = BY_NAME["wait"].number
    body = msgspec.msgpack.encode(Wait(1, key="w"))
    cancel = wire.request(90, BY_NAME["cancel"].number, Cancel(first))
    client.sock.sendall(cancel + wire.request(91, number, body))
    replies = {reply.id: reply.errno for reply in (client.read() for _ in range(3))}
    assert replies == {90: 0, 91: errno.EAGAIN, first: errno.ECANCELED}


def test_an_ended_agent_leaves_no_keys(door: Door, handlers: Handlers) -> None:
    agent = door.connect(credential="secret")
    agent.call(Kill(7, key="k"))
    agent.send(Wait(7, key="w"))
    agent.call(Ping())
    agent.close()
    door.until(lambda: len(door.dispatcher.sessions) == 0)
    assert len(door.dispatcher.keys) == 2
    door.do(lambda: door.dispatcher.forget_agent(7))
    door.until(lambda: handlers.ended == ["wait"])
    door.until(lambda: len(door.dispatcher.keys) == 0)


# Streams.


def test_a_stream_comes_in_order_and_ends(client: Client) -> None:
    wanted = client.send(Attach(100))
    chunks = [client.read() for _ in range(101)]
    assert [reply.more for reply in chunks] == [True] * 100 + [False]
    assert {reply.id for reply in chunks} == {wanted}
    assert [answer(reply, Watched).cid for reply in chunks[:-1]] == list(range(100))


def test_a_slow_reader_pauses_its_stream(door: Door, client: Client, handlers: Handlers) -> None:
    total = 10_000
    client.send(Attach(total))
    (session,) = door.dispatcher.sessions
    door.until(lambda: not session.port.writable())
    stalled = handlers.sent
    assert stalled < total // 5  # some socket buffer, and no more
    other = door.connect()
    for _ in range(100):
        other.call(Ping())
    assert handlers.sent == stalled
    seen = sum(client.read().more for _ in range(total + 1))
    assert seen == total


# Draining.


def test_a_drain_refuses_waits_and_cancels(door: Door, client: Client, handlers: Handlers) -> None:
    quick = client.send(Wait(1))
    other = door.connect()
    stuck = other.send(Attach(1 << 30))  # only listens: is ended at once
    client.call(Ping())

    drained = asyncio.run_coroutine_threadsafe(door.dispatcher.drain(PATIENCE), door.loop)
    while (reply := other.read()).more:
        pass
    assert (reply.id, reply.errno) == (stuck, errno.ESHUTDOWN)
    number, sentence = refused(client, 1)
    assert number == errno.ESHUTDOWN
    assert "ask again" in sentence
    door.do(handlers.open)
    reply = client.read()
    assert (reply.id, reply.errno) == (quick, 0)
    drained.result(PATIENCE)


def test_a_drain_does_not_wait_for_ever(door: Door, client: Client) -> None:
    client.send(Wait(1))
    client.call(Ping())
    door.run(door.dispatcher.drain(0.01))
    with pytest.raises(OSError, match="going down") as raised:
        answer(client.read())
    assert raised.value.errno == errno.ESHUTDOWN


# Binding.


class NoSuchCall:
    def sys_nothing(self, caller: Caller, args: Any) -> None: ...


class Twice:
    def sys_hello(self, caller: Caller, args: Any) -> None: ...


class BadSignature:
    def sys_kill(self, caller: Caller, args: Any, what: Any) -> None: ...


class SyncStream:
    def sys_attach(self, caller: Caller, args: Any, stream: Any) -> None: ...


@pytest.mark.parametrize("manager", [NoSuchCall(), Twice(), BadSignature(), SyncStream()])
def test_binding_mistakes_stop_the_boot(manager: object) -> None:
    async def attach(caller: Caller, credential: str) -> str:
        return ""

    dispatcher = Dispatcher(Access(owner=0), attach, version="", boot_id="")
    with pytest.raises(ValueError, match=r"no such system call|two handlers|signature"):
        dispatcher.bind(manager)
