"""The blocking face, against a kernel that really parses frames."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import aios
from aios import errors
from aios.link import exit_code
from aiosd.abi.inference import Chunk, Generation, Timing, TokenUsage, Turn
from aiosd.abi.process import Kill, LogRecord
from aiosd.abi.system import Event, Pong
from tests.sdk.fake_kernel import DEADLINE, Connection, FakeKernel


def generation(text: str = "hello", parsed: Any = None, finish: str = "stop") -> Generation:
    return Generation(
        text=text,
        token_ids=[1, 2],
        finish_reason=finish,
        usage=TokenUsage(3, 2),
        timing=Timing(0.1, 0.2),
        context=5,
        core="c",
        parsed=parsed,
    )


def test_a_call_goes_out_as_the_table_says_and_its_reply_comes_back(fake: FakeKernel) -> None:
    with aios.connect() as kernel:
        assert kernel.ping(payload=b"x").payload == b"x"
        assert kernel.aid == 0
    assert fake.expect("hello").level == aios.LEVEL
    assert fake.expect("ping").payload == b"x"
    assert fake.seen.empty()  # a person leaves without a word


def test_a_name_makes_the_process_an_agent_which_exits_with_the_block(fake: FakeKernel) -> None:
    with aios.connect(name="math") as kernel:
        assert kernel.aid == 7
    fake.expect("hello")
    assert fake.expect("register_agent").name == "math"
    assert fake.expect("exit").code == 0
    assert kernel.closed
    with pytest.raises(OSError, match="closed"):
        kernel.ping()


def test_leaving_by_an_exception_reports_a_failure(fake: FakeKernel) -> None:
    with pytest.raises(ZeroDivisionError), aios.connect(name="math"):
        raise ZeroDivisionError
    fake.expect("hello")
    fake.expect("register_agent")
    assert fake.expect("exit").code == 1


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (ValueError(), 1),
        (KeyboardInterrupt(), 130),
        (SystemExit(), 0),
        (SystemExit(3), 3),
        (SystemExit("why"), 1),
    ],
)
def test_exit_codes(error: BaseException | None, code: int) -> None:
    assert exit_code(error) == code


def test_the_kernel_hanging_up_on_exit_is_no_error(fake: FakeKernel) -> None:
    fake.answers["exit"] = lambda connection, id, args: connection.hang_up()
    with aios.connect(name="math", reconnect=0) as kernel:
        kernel.exit(3)
    assert kernel.closed


def test_a_spawned_process_is_its_agent_and_its_exit_is_left_to_the_kernel(
    fake: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.credentials["one-time"] = 4
    out, into = os.pipe()
    os.write(into, b"one-time")
    os.close(into)
    monkeypatch.setenv("AIOS_CREDENTIAL_FD", str(out))
    with aios.connect(name="story") as kernel:
        assert kernel.aid == 4
        assert "AIOS_CREDENTIAL_FD" not in os.environ
        assert stat.S_ISSOCK(os.fstat(out).st_mode)  # closed: its number serves again
    with aios.connect() as second:  # the process stays the agent that it is
        assert second.aid == 4
    names = [name for name, _ in fake.seen.queue]
    assert names == ["hello", "hello"]  # no new registration, no exit


def test_a_descriptor_that_is_none_is_a_clear_error(
    fake: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOS_CREDENTIAL_FD", "soup")
    with pytest.raises(OSError, match="AIOS_CREDENTIAL_FD=soup"):
        aios.connect()


def test_errors_arrive_as_the_subclass_of_their_errno(fake: FakeKernel) -> None:
    fake.answers["kill"] = PermissionError(errno.EPERM, "kill: not yours")
    fake.answers["get_status"] = ProcessLookupError(errno.ESRCH, "aid: no agent 9")
    with aios.connect() as kernel:
        with pytest.raises(PermissionError, match="kill: not yours"):
            kernel.kill(9, signal="INT")
        with pytest.raises(ProcessLookupError, match="no agent 9"):
            kernel.get_status(9)


def test_a_call_that_is_not_idempotent_carries_a_fresh_key(fake: FakeKernel) -> None:
    with aios.connect() as kernel:
        kernel.kill(9)
        kernel.kill(9)
        kernel.kill(9, key="mine")
    fake.expect("hello")
    keys = [fake.expect("kill").key for _ in range(3)]
    assert keys[2] == "mine"
    assert len({*keys, ""}) == 4


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError, match=r"aiosd is not running at .*start it with"):
        aios.connect(tmp_path / "none")


def test_a_socket_without_a_daemon(fake: FakeKernel) -> None:
    fake.stop()
    fake.path.touch()
    with pytest.raises(ConnectionRefusedError, match="aiosd is not running"):
        aios.connect()
    fake.start()


@pytest.mark.skipif(os.getuid() == 0, reason="root may open every socket")
def test_no_permission(fake: FakeKernel) -> None:
    fake.path.chmod(0)
    with pytest.raises(PermissionError, match="another user"):
        aios.connect()


def test_other_troubles_with_the_socket_keep_their_errno() -> None:
    refused = errors.not_running("/s", PermissionError(errno.EACCES, "Permission denied"))
    assert isinstance(refused, PermissionError)
    assert "serves another user" in str(refused)
    other = errors.not_running("/s", OSError(errno.EMFILE, "Too many open files"))
    assert other.errno == errno.EMFILE
    assert "can't connect to aiosd at /s" in str(other)


def test_a_kernel_that_is_too_old(fake: FakeKernel) -> None:
    fake.level = 0
    with pytest.raises(aios.VersionError, match=r"too old: .* ABI level 0, .* needs \d") as e:
        aios.connect()
    assert (e.value.errno, e.value.mine, e.value.theirs) == (errno.EPROTO, aios.LEVEL, 0)


def test_a_kernel_that_refuses_our_level(fake: FakeKernel) -> None:
    fake.answers["hello"] = OSError(errno.EPROTO, "level: this kernel speaks 9 and up")
    with pytest.raises(aios.VersionError, match="speaks 9 and up; install"):
        aios.connect()


def test_something_else_listens(fake: FakeKernel) -> None:
    fake.answers["hello"] = lambda connection, id, args: connection.peer.sendall(b"SSH-2.0-x\r\n")
    with pytest.raises(aios.VersionError, match="not aiosd at all"):
        aios.connect()


def test_a_credential_that_is_not_valid(fake: FakeKernel) -> None:
    with pytest.raises(PermissionError, match="credential: not valid"):
        aios.connect(credential="wrong")


def test_a_request_above_the_kernels_limit_is_not_sent(fake: FakeKernel) -> None:
    fake.max_frame = 4096
    with aios.connect() as kernel:
        with pytest.raises(OSError, match="the kernel takes 4096") as e:
            kernel.ping(payload=bytes(5000))
        assert e.value.errno == errno.EMSGSIZE
        assert kernel.ping().payload == b""


def test_an_answer_in_an_unknown_form_fails_that_call_alone(fake: FakeKernel) -> None:
    fake.answers["get_status"] = {"surprise": 1}
    with aios.connect() as kernel:
        with pytest.raises(aios.VersionError, match="get_status: aiosd answers in a form"):
            kernel.get_status(1)
        assert kernel.ping().payload == b""


def test_unknown_fields_of_a_reply_are_tolerated(fake: FakeKernel) -> None:
    fake.answers["ping"] = {"payload": b"p", "since": "level 9"}
    with aios.connect() as kernel:
        assert kernel.ping() == Pong(b"p")


def test_llm_generate_takes_messages_and_a_schema(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = generation(parsed={"n": 1})
    with aios.connect() as kernel:
        reply = kernel.llm_generate(
            messages=[{"role": "user", "content": "hi"}, Turn("assistant", "yes")],
            schema={"type": "object"},
            stop=("a", "b"),
            temperature=0,
        )
    assert (reply.text, reply.parsed, reply.usage.prompt_tokens) == ("hello", {"n": 1}, 3)
    fake.expect("hello")
    sent = fake.expect("llm_generate")
    assert sent.messages == [Turn("user", "hi"), Turn("assistant", "yes")]
    assert (sent.schema, sent.stop) == ({"type": "object"}, ["a", "b"])


class Answer:
    """Has what the SDK needs of a Pydantic model."""

    def __init__(self, n: int) -> None:
        self.n = n

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"type": "object", "title": "Answer"}

    @classmethod
    def model_validate(cls, value: dict[str, Any]) -> Answer:
        if value["n"] < 0:
            raise ValueError("n: below 0")
        return cls(value["n"])


def test_a_model_class_gives_the_schema_and_validates_the_reply(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = generation(parsed={"n": 1})
    with aios.connect() as kernel:
        assert kernel.llm_generate("one", schema=Answer).parsed.n == 1
        fake.answers["llm_generate"] = generation(parsed={"n": -1})
        with pytest.raises(ValueError, match="below 0"):
            kernel.llm_generate("one", schema=Answer)
        fake.answers["llm_generate"] = generation(finish="length")
        assert kernel.llm_generate("one", schema=Answer).parsed is None
    fake.expect("hello")
    assert fake.expect("llm_generate").schema["title"] == "Answer"


def test_mistakes_in_arguments_are_named_before_anything_is_sent(fake: FakeKernel) -> None:
    with aios.connect() as kernel:
        with pytest.raises(TypeError, match="stop: a list is needed"):
            kernel.llm_generate("x", stop="END")
        with pytest.raises(ValueError, match=r"messages\[0\]"):
            kernel.llm_generate(messages=[{"role": "user"}])
        with pytest.raises(TypeError, match="schema: "):
            kernel.llm_generate("x", schema=int)
        with pytest.raises(TypeError, match="Encoding objects of type object"):
            kernel.send_message(1, object())
        kernel.ping()
    assert [name for name, _ in fake.seen.queue] == ["hello", "ping"]


def tell(connection: Connection, id: int, args: Any) -> None:
    for place, word in enumerate(["once", " upon", " a time"]):
        connection.reply(id, Chunk(word, [place], place), more=True)
    connection.reply(id, generation("once upon a time"))


def test_a_stream_gives_its_chunks_and_then_its_reply(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = tell
    with aios.connect() as kernel:
        stream = kernel.llm_generate("Tell", stream=True)
        with pytest.raises(RuntimeError, match="not ended"):
            stream.reply  # noqa: B018
        assert [chunk.text for chunk in stream] == ["once", " upon", " a time"]
        assert stream.ended
        assert stream.reply.text == "once upon a time"
        assert kernel.llm_generate("Tell", stream=True).result().text == "once upon a time"


def test_chunks_that_are_lists_are_handed_out_singly(fake: FakeKernel) -> None:
    def logs(connection: Connection, id: int, args: Any) -> None:
        connection.reply(id, [LogRecord(0, "out", "a"), LogRecord(0, "err", "b")], more=True)
        connection.reply(id, [LogRecord(0, "out", "c")], more=True)
        connection.reply(id)

    fake.answers["read_log"] = logs
    with aios.connect() as kernel:
        assert [record.text for record in kernel.read_log(3)] == ["a", "b", "c"]


def test_an_error_ends_a_stream(fake: FakeKernel) -> None:
    def fails(connection: Connection, id: int, args: Any) -> None:
        connection.reply(id, Event(0, "a"), more=True)
        connection.fail(id, OSError(errno.EIO, "the core was lost"))

    fake.answers["watch"] = fails
    with aios.connect() as kernel:
        stream = kernel.watch()
        assert next(stream).kind == "a"
        with pytest.raises(OSError, match="the core was lost"):
            next(stream)


def endless(connection: Connection, id: int, args: Any) -> None:
    connection.reply(id, Event(0, "tick"), more=True)


def test_leaving_a_stream_cancels_it(fake: FakeKernel) -> None:
    fake.answers["watch"] = endless
    with aios.connect() as kernel:
        with kernel.watch() as events:
            assert next(events).kind == "tick"
        assert list(events) == []
        fake.expect("hello")
        fake.expect("watch")
        assert fake.expect("cancel").id == 2
        kernel.ping()


def test_dropping_a_stream_cancels_it(fake: FakeKernel) -> None:
    fake.answers["watch"] = endless
    with aios.connect() as kernel:
        for _ in kernel.watch():
            break
        fake.expect("hello")
        fake.expect("watch")
        fake.expect("cancel")


def test_a_generation_that_is_cancelled_still_gives_its_reply(fake: FakeKernel) -> None:
    begun: list[int] = []

    def begin(connection: Connection, id: int, args: Any) -> None:
        begun.append(id)
        connection.reply(id, Chunk("on", [1], 0), more=True)

    def cancel(connection: Connection, id: int, args: Any) -> None:
        connection.reply(args.id, generation("on", finish="cancelled"))
        connection.reply(id)

    fake.answers |= {"llm_generate": begin, "cancel": cancel}
    with aios.connect() as kernel:
        stream = kernel.llm_generate("x", stream=True)
        next(stream)
        stream.cancel()
        assert stream.result().finish_reason == "cancelled"


def test_calls_go_on_while_a_stream_is_open(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = tell
    with aios.connect() as kernel:
        stream = kernel.llm_generate("x", stream=True)
        assert kernel.ping(payload=b"1").payload == b"1"
        assert len(list(stream)) == 3


def test_many_threads_call_at_once(fake: FakeKernel) -> None:
    wrong: list[object] = []

    def work(kernel: aios.Kernel, number: int) -> None:
        for turn in range(200):
            payload = f"{number}.{turn}".encode()
            if kernel.ping(payload=payload).payload != payload:
                wrong.append(payload)

    with aios.connect() as kernel:
        threads = [threading.Thread(target=work, args=(kernel, n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
    assert wrong == []


def test_answers_out_of_order_reach_the_threads_that_wait_for_them(fake: FakeKernel) -> None:
    waiting: list[tuple[Connection, int]] = []
    both = threading.Event()

    def hold(connection: Connection, id: int, args: Any) -> None:
        waiting.append((connection, id))
        if len(waiting) == 3:
            for held, each in reversed(waiting):
                held.reply(each)
            both.set()

    fake.answers["kill"] = hold
    with aios.connect() as kernel:
        threads = [threading.Thread(target=kernel.kill, args=(n,)) for n in (1, 2, 3)]
        for thread in threads:
            thread.start()
        assert both.wait(DEADLINE)
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()


def test_large_requests_and_answers_pass_while_neither_side_waits(fake: FakeKernel) -> None:
    """Both socket buffers fill: the sender must read to get on."""
    with aios.connect() as kernel:
        lines = 40
        big = b"x" * 65536
        sent = [kernel._attached().start(_ping(big)) for _ in range(lines)]
        for each in sent:
            kernel._attached().wait(each)
            assert each.result().payload == big


def _ping(payload: bytes) -> Any:
    from aiosd.abi.system import Ping

    return Ping(payload=payload)


def test_a_lost_connection_is_made_again_with_the_agents_credential(fake: FakeKernel) -> None:
    with aios.connect(name="math") as kernel:
        fake.stop()
        fake.start()
        assert kernel.ping(payload=b"back").payload == b"back"
        assert fake.connections[0].aid == 7
    names = [name for name, _ in fake.seen.queue]
    assert names == ["hello", "register_agent", "hello", "ping", "exit"]


def lost_once(answer: Any) -> Any:
    """Hang up on the first call, answer the second."""
    calls: list[Any] = []

    def act(connection: Connection, id: int, args: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            connection.hang_up()
        else:
            connection.reply(id, answer)

    return act


def test_a_call_lost_in_flight_is_asked_again_with_the_same_key(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = lost_once(generation("again"))
    with aios.connect() as kernel:
        assert kernel.llm_generate("x").text == "again"
    fake.expect("hello")
    first = fake.expect("llm_generate")
    fake.expect("hello")
    assert fake.expect("llm_generate") == first


def test_a_call_lost_again_and_again_says_what_is_open(fake: FakeKernel) -> None:
    fake.answers["kill"] = lambda connection, id, args: connection.hang_up()
    with (
        aios.connect(reconnect=2.0) as kernel,
        pytest.raises(aios.ConnectionLost, match="key='k'") as e,
    ):
        kernel.kill(1, key="k")
    assert sum(name == "kill" for name, _ in fake.seen.queue) > 2
    assert (e.value.call, e.value.key, e.value.maybe_done) == ("kill", "k", True)
    assert isinstance(e.value, ConnectionResetError)


def test_a_call_that_can_not_be_asked_again_is_not(fake: FakeKernel) -> None:
    fake.answers["kill"] = lambda connection, id, args: connection.hang_up()
    with aios.connect() as kernel:
        with pytest.raises(ConnectionResetError, match="can't be known whether it was done"):
            kernel._call(Kill(aid=1))  # no key
        assert kernel.ping().payload == b""
    assert sum(name == "kill" for name, _ in fake.seen.queue) == 1


def told_in_pieces(tokens: int) -> Any:
    """Stream a token at a time from `resume` on, and hang up after every second one."""

    def act(connection: Connection, id: int, args: Any) -> None:
        for index in range(args.resume, min(args.resume + 2, tokens)):
            connection.reply(id, Chunk(str(index), [index], index), more=True)
        if args.resume + 2 < tokens:
            connection.hang_up()
        else:
            connection.reply(id, generation())

    return act


def test_a_generation_that_is_cut_off_goes_on_with_the_next_token(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = told_in_pieces(7)
    with aios.connect(name="math") as kernel:
        stream = kernel.llm_generate("x", stream=True)
        assert "".join(chunk.text for chunk in stream) == "0123456"
        assert stream.reply.text == "hello"
    asked = [args for name, args in fake.seen.queue if name == "llm_generate"]
    assert [args.resume for args in asked] == [0, 2, 4, 6]
    assert len({args.key for args in asked}) == 1


def test_a_generation_that_gets_nowhere_is_given_up(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = lambda connection, id, args: connection.hang_up()
    with aios.connect(reconnect=0.2) as kernel:
        with pytest.raises(aios.ConnectionLost, match="during llm_generate"):
            next(kernel.llm_generate("x", stream=True))
        fake.answers["llm_generate"] = OSError(errno.EIO, "on record, can't be computed again")
        with pytest.raises(OSError, match="on record"):
            next(kernel.llm_generate("x", stream=True))


def test_a_cancel_reaches_the_kernel_that_goes_on(fake: FakeKernel) -> None:
    def act(connection: Connection, id: int, args: Any) -> None:
        if not args.resume:
            connection.reply(id, Chunk("a", [1], 0), more=True)
            connection.hang_up()

    def end(connection: Connection, id: int, args: Any) -> None:
        connection.reply(args.id, generation(finish="cancelled"))
        connection.reply(id)

    fake.answers["llm_generate"], fake.answers["cancel"] = act, end
    with aios.connect() as kernel:
        stream = kernel.llm_generate("x", stream=True)
        assert next(stream).text == "a"
        stream.cancel()
        assert stream.result().finish_reason == "cancelled"


def test_a_kernel_that_does_not_come_back(fake: FakeKernel) -> None:
    def die(connection: Connection, id: int, args: Any) -> None:
        fake.listener.shutdown(socket.SHUT_RDWR)
        fake.path.unlink()
        connection.hang_up()

    fake.answers["get_status"] = die
    with (
        aios.connect(reconnect=0.05) as kernel,
        pytest.raises(aios.ConnectionLost, match=r"did not come back within 0\.05 s.*no harm"),
    ):
        kernel.get_status(1)


def test_a_kernel_that_is_going_down_is_asked_again(fake: FakeKernel) -> None:
    down = OSError(errno.ESHUTDOWN, "the kernel is going down")
    refusals = [down, down, None]

    def refuse(connection: Connection, id: int, args: Any) -> None:
        error = refusals.pop(0)
        if error is None:
            connection.reply(id)
        else:
            connection.fail(id, error)

    fake.answers["kill"] = refuse
    with aios.connect() as kernel:
        kernel.kill(1)
    fake.expect("hello")
    assert len({fake.expect("kill").key for _ in range(3)}) == 1
    fake.answers["kill"] = down
    with aios.connect(reconnect=0.05) as kernel, pytest.raises(OSError, match="going down"):
        kernel.kill(1)
    fake.answers["hello"] = down
    with pytest.raises(OSError, match="going down"):
        aios.connect()  # at first, nobody waits


def test_a_stream_lost_in_flight_raises(fake: FakeKernel) -> None:
    def cut(connection: Connection, id: int, args: Any) -> None:
        connection.reply(id, Event(0, "tick"), more=True)
        connection.hang_up()

    fake.answers["watch"] = cut
    with aios.connect() as kernel:
        events = kernel.watch()
        assert next(events).kind == "tick"
        with pytest.raises(aios.ConnectionLost, match="during watch"):
            next(events)
        assert kernel.ping().payload == b""


def test_threads_that_wait_when_the_connection_is_lost_all_get_their_answers(
    fake: FakeKernel,
) -> None:
    held: list[Connection] = []

    def hold(connection: Connection, id: int, args: Any) -> None:
        if len(held) < 4:
            held.append(connection)
            if len(held) == 4:
                connection.hang_up()
        else:
            connection.reply(id)

    fake.answers["kill"] = hold
    with aios.connect() as kernel:
        threads = [threading.Thread(target=kernel.kill, args=(n,)) for n in (1, 2, 3, 4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE)
            assert not thread.is_alive()
    assert sum(name == "hello" for name, _ in fake.seen.queue) == 2


def test_ctrl_c_cancels_the_call(fake: FakeKernel) -> None:
    fake.answers["llm_generate"] = lambda connection, id, args: os.kill(os.getpid(), signal.SIGINT)
    with aios.connect() as kernel:
        with pytest.raises(KeyboardInterrupt):
            kernel.llm_generate("long")
        fake.expect("hello")
        fake.expect("llm_generate")
        assert fake.expect("cancel").id == 2
        assert kernel.ping(payload=b"on").payload == b"on"


def test_ctrl_c_amid_reading_gives_the_connection_up_rather_than_lose_bytes(
    fake: FakeKernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with aios.connect() as kernel:

        def interrupted(data: bytes) -> Any:
            raise KeyboardInterrupt

        monkeypatch.setattr(kernel._attached().session, "feed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kernel.ping()
        assert kernel.ping(payload=b"anew").payload == b"anew"


def test_ctrl_c_at_any_moment_leaves_the_connection_usable(fake: FakeKernel) -> None:
    """SIGINT comes while pings go back and forth; no answer may reach the wrong question."""
    armed, interrupted, number = False, 0, 0

    def handle(number: int, frame: object) -> None:
        nonlocal armed
        if armed:
            armed = False
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        with aios.connect() as kernel:
            while number < 200 or (interrupted <= 50 and number < 20_000):
                number += 1
                payload = str(number).encode()
                sender = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT))
                try:
                    armed = True
                    sender.start()
                    for _ in range(20):
                        assert kernel.ping(payload=payload).payload == payload
                    armed = False
                except KeyboardInterrupt:
                    interrupted += 1
                sender.join()  # no signal comes late, where nobody expects one
            assert kernel.ping(payload=b"end").payload == b"end"
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupted > 50


def test_a_forked_process_is_told_to_connect_itself(fake: FakeKernel) -> None:
    with aios.connect(name="math") as kernel:
        monitor = os.getpid()
        kernel._link._pid = monitor + 1  # as it looks from a fork
        with pytest.raises(OSError, match="forked this one"):
            kernel.ping()
        with pytest.raises(OSError, match="forked"):
            kernel.watch()
    fake.expect("hello")
    fake.expect("register_agent")
    assert fake.seen.empty()  # a fork does not end its parent's agent


FORK = """
import gc, os, aios

kernel = aios.connect(name="math")
events = kernel.watch()
child = os.fork()
if not child:
    try:
        kernel.ping()
    except OSError as error:
        del events, kernel  # neither cancels, ends nor closes what is the parent's
        gc.collect()
        os._exit(7 if "forked" in str(error) else 1)
    os._exit(1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert kernel.ping(payload=b"still").payload == b"still"
events.close()
kernel.close()
"""


def test_a_fork_leaves_its_parents_connection_alone(fake: FakeKernel) -> None:
    fake.answers["watch"] = endless
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", FORK], check=True, env=environment, timeout=DEADLINE)
    names = [name for name, _ in fake.seen.queue]
    assert names == ["hello", "register_agent", "watch", "ping", "cancel"]


def test_closing_wakes_who_waits(fake: FakeKernel) -> None:
    asked = threading.Event()
    fake.answers["kill"] = lambda connection, id, args: asked.set()
    failed: list[BaseException] = []
    kernel = aios.connect()

    def wait() -> None:
        try:
            kernel.kill(1)
        except OSError as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert asked.wait(DEADLINE)
    kernel.close()
    thread.join(DEADLINE)
    assert failed
    assert not thread.is_alive()


def test_nothing_is_left_open(fake: FakeKernel) -> None:
    def descriptors() -> set[str]:
        return set(os.listdir("/proc/self/fd"))

    before = len(descriptors())
    for _ in range(20):
        with aios.connect() as kernel:
            kernel.ping()
    with contextlib.suppress(ConnectionRefusedError):
        aios.connect(str(fake.path) + "none")
    fake.stop()
    fake.start()
    assert len(descriptors()) <= before
