"""Messages between agents: a bounded, durable mailbox for each, and topics that fill many at once.

    messages = Messages(settings, db, access, table)
    await messages.boot()              # what was acknowledged is there again

Who may send to whom is access's to say (capability `message`): an agent may write to itself, what
descends from it, its parent, and whoever a group or a grant lets it; a topic carries a message to
those of its subscribers that the sender could have sent it to one by one.

A subscription lives as long as its agent, unless its stream is cancelled: while no stream is open
(a connection or a kernel was lost), the mailbox gathers what is published.

What must hold: an acknowledged message survives SIGKILL of everything; recv_message gives each once
(under one key, the same ones again), a topic's stream at least once; a mailbox never holds more
than its limits, and no sender more than half of it.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aiosd.abi.messages import Message, Publish, RecvMessage, SendMessage, Sent, Subscribe
from aiosd.access import Access, Caller
from aiosd.db import Connection, Database
from aiosd.journal import dropping
from aiosd.keys import Owner, answerer, asking
from aiosd.settings import Config

if TYPE_CHECKING:
    from aiosd.proc import ProcessTable
    from aiosd.session import Stream

BODY_MAX: Final = 64 << 10
"""Bytes of a message's body, encoded."""
TOPICS: Final = 64
"""Topics that one agent may subscribe to."""
PAGE: Final = 64
LONGEST: Final = 31_536_000.0

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode
_INSERT: Final = "insert into messages (t, aid, sender, uid, topic, body) values (?, ?, ?, ?, ?, ?)"


class Mailbox:
    """What an agent's mailbox holds, in numbers, and who waits for it to be filled."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self.of: Counter[int] = Counter()
        self.topics: Counter[str] = Counter()
        self.waiting: set[asyncio.Event] = set()

    def add(self, sender: int, topic: str, size: int, sign: int = 1) -> None:
        """Count a message in, or out with sign -1."""
        self.count += sign
        self.bytes += sign * size
        self.of[sender] += sign
        self.topics[topic] += sign
        if not self.of[sender]:
            del self.of[sender]

    def rouse(self) -> None:
        """Let those who wait look again."""
        for news in self.waiting:
            news.set()


class Messages:
    """All mailboxes. config: what is set now."""

    def __init__(
        self, config: Callable[[], Config], db: Database, access: Access, table: ProcessTable
    ) -> None:
        self._config = config
        self._db = db
        self._access = access
        self._table = table
        self._boxes: defaultdict[int, Mailbox] = defaultdict(Mailbox)
        self._topics: defaultdict[str, set[int]] = defaultdict(set)
        self._streams: dict[tuple[int, str], _Reader] = {}

    async def boot(self) -> None:
        """Count what the mailboxes hold; those of agents that have ended go."""
        rows, subscriptions = await self._db.read(_load)
        for aid, sender, topic, size in rows:
            self._boxes[aid].add(sender, topic, size)
        for aid, topic in subscriptions:
            self._topics[topic].add(aid)
        for aid in {*self._boxes, *(aid for aid, _ in subscriptions)}:
            if not self._alive(aid):
                self.agent_ended(aid)

    def waits_for(self, aid: int) -> str:
        """Return "message" when the agent waits for one, else nothing."""
        box = self._boxes.get(aid)
        return "message" if box is not None and box.waiting else ""

    def agent_ended(self, aid: int) -> None:
        """Clear an agent's mailbox and its subscriptions."""
        box = self._boxes.pop(aid, None)
        topics = [topic for topic, aids in self._topics.items() if aid in aids]
        for topic in topics:
            self._leave(aid, topic)
        if box is not None or topics:
            self._db.write_soon(lambda db: _clear(db, aid))
        if box is not None:
            box.rouse()

    # -- sending --------------------------------------------------------------------------------

    async def sys_send_message(self, caller: Caller, args: SendMessage) -> Sent:
        """Put a message in an agent's mailbox; ENOBUFS when that is full."""
        self._table.get(args.aid)
        body = _packed(args.body)
        if reason := self._full(args.aid, caller.aid, len(body)):
            raise OSError(errno.ENOBUFS, f"send_message: {reason}")
        return await self._deliver(caller, [args.aid], "", body)

    async def sys_publish(self, caller: Caller, args: Publish) -> Sent:
        """Send a message to a topic's subscribers; ENOBUFS when none of them has room for it."""
        body = _packed(args.body)
        receivers = [
            aid
            for aid in sorted(self._topics.get(args.topic, ()))
            if aid != caller.aid and self._alive(aid) and self._may(caller, aid)
        ]
        reasons = {aid: self._full(aid, caller.aid, len(body)) for aid in receivers}
        room = [aid for aid in receivers if not reasons[aid]]
        if receivers and not room:
            raise OSError(errno.ENOBUFS, f"publish: {reasons[receivers[0]]}; so it is with all")
        return await self._deliver(caller, room, args.topic, body)

    def _may(self, caller: Caller, aid: int) -> bool:
        """Whether what the caller publishes goes to a subscriber; either way it is on record."""
        try:
            self._access.over(caller, aid, "publish", "message")
        except PermissionError as error:
            facts = {"call": "publish", "errno": "EPERM", "reason": error.strerror}
            self._access.witness("access.deny", caller, aid, facts)
            return False
        return True

    def _full(self, aid: int, sender: int, size: int) -> str:
        """Return why a mailbox takes nothing more from a sender, or nothing."""
        limits, box = self._config().messages, self._boxes[aid]
        if box.count >= limits.max_messages or box.bytes + size > limits.max_bytes:
            return (
                f"the mailbox of agent {aid} is full ({box.count} messages, {box.bytes} bytes; "
                f"the limits are {limits.max_messages} and {limits.max_bytes}); try later"
            )
        if sender != aid and box.of[sender] >= max(1, limits.max_messages // 2):
            return f"half of the mailbox of agent {aid} is yours; wait until it has read some"
        return ""

    async def _deliver(self, caller: Caller, aids: list[int], topic: str, body: bytes) -> Sent:
        """Store copies in one transaction, with the answer; count them in before."""
        now = time.time()
        answer = answerer()

        def write(db: Connection) -> Sent:
            first = 0
            for aid in aids:
                row = (now, aid, caller.aid, caller.uid, topic, body)
                id = int(db.execute(_INSERT, row).lastrowid or 0)
                first = first or id
            sent = Sent(first, len(aids))
            answer(db, sent)
            return sent

        self._count(aids, caller.aid, topic, len(body), 1)
        try:
            sent = await asyncio.shield(self._stored(write, aids, caller.aid, topic, len(body)))
        finally:
            for aid in aids:
                self._boxes[aid].rouse()
        return sent

    async def _stored(
        self,
        write: Callable[[Connection], Sent],
        aids: list[int],
        sender: int,
        topic: str,
        size: int,
    ) -> Sent:
        try:
            return await self._db.write(write)
        except BaseException:
            self._count(aids, sender, topic, size, -1)
            raise

    def _count(self, aids: Iterable[int], sender: int, topic: str, size: int, sign: int) -> None:
        for aid in aids:
            self._boxes[aid].add(sender, topic, size, sign)

    # -- receiving ------------------------------------------------------------------------------

    async def sys_recv_message(self, caller: Caller, args: RecvMessage) -> list[Message]:
        """Take messages that were sent to the calling agent itself, waiting for the first.

        timeout 0 answers at once, with none when there are none; a longer one ends with ETIMEDOUT.
        """
        aid = self._own(caller)
        if args.timeout is not None and args.timeout < 0:
            raise OSError(errno.EINVAL, f"timeout: {args.timeout} is negative; none waits for ever")
        timeout = None if args.timeout is None else min(args.timeout, LONGEST)
        try:
            async with asyncio.timeout(timeout or None):
                while not self._boxes[aid].topics[""]:
                    if timeout == 0:
                        return []
                    await self._news(aid)
                    self._table.get(aid)
        except TimeoutError:
            raise TimeoutError(
                errno.ETIMEDOUT, f"recv_message: no message came within {timeout} s"
            ) from None
        return await self._take(aid, args.limit)

    sys_recv_message.waits = True  # type: ignore[attr-defined]

    async def _take(self, aid: int, limit: int) -> list[Message]:
        """Take messages out for good, the answer in the same transaction."""
        answer = answerer()

        def take(db: Connection) -> list[tuple[Any, ...]]:
            rows = _oldest(db, aid, "", limit)
            _remove(db, [row[0] for row in rows])
            answer(db, [_message(row) for row in rows])
            return rows

        work = asyncio.ensure_future(self._db.write(take))
        try:
            rows = await asyncio.shield(work)
        except asyncio.CancelledError:
            kept = asking.get()
            names = [] if kept is None else [kept.name]
            work.add_done_callback(lambda done: self._put_back(aid, done, names))
            raise
        self._taken(aid, rows)
        return [_message(row) for row in rows]

    def _taken(self, aid: int, rows: list[tuple[Any, ...]]) -> None:
        if aid in self._boxes:
            for _, _, sender, _, topic, body in rows:
                self._boxes[aid].add(sender, topic, len(body), -1)

    def _put_back(
        self,
        aid: int,
        done: asyncio.Future[list[tuple[Any, ...]]],
        names: list[tuple[Owner, str, str]],
    ) -> None:
        """Nobody was told of these messages: they are there again, their answer is not."""
        if done.cancelled() or done.exception() is not None or aid not in self._boxes:
            return
        rows = [(row[0], row[1], aid, *row[2:]) for row in done.result()]
        forget = dropping(names)

        def write(db: Connection) -> None:
            _insert_again(db, rows)
            forget(db)

        self._db.write_soon(write)
        self._boxes[aid].rouse()

    async def _news(self, aid: int) -> None:
        box, news = self._boxes[aid], asyncio.Event()
        box.waiting.add(news)
        try:
            await news.wait()
        finally:
            box.waiting.discard(news)

    # -- topics ---------------------------------------------------------------------------------

    async def sys_subscribe(self, caller: Caller, args: Subscribe, stream: Stream) -> None:
        """Stream a topic's messages until cancelled; the last stream of an agent's takes over."""
        aid = self._own(caller)
        await self._join(aid, args.topic)
        reader = _Reader()
        before = self._streams.get((aid, args.topic))
        if before is not None:
            before.end("another stream of this agent has taken over")
        self._streams[aid, args.topic] = reader
        stream.on_cancel = reader.end
        box = self._boxes[aid]
        box.waiting.add(reader.news)
        try:
            await self._read(aid, args.topic, reader, stream)
        finally:
            box.waiting.discard(reader.news)
            if self._streams.get((aid, args.topic)) is reader:
                del self._streams[aid, args.topic]
        if reader.reason == "cancelled":
            await self._unsubscribe(aid, args.topic)
        raise OSError(errno.ECANCELED, f"subscribe: {reader.reason or 'the agent has ended'}")

    async def _read(self, aid: int, topic: str, reader: _Reader, stream: Stream) -> None:
        """Send what there is and what comes, until the reader is to end."""
        while not reader.reason and self._alive(aid):
            reader.news.clear()
            rows = []
            if self._boxes[aid].topics[topic]:
                rows = await self._db.read(lambda db: _oldest(db, aid, topic, PAGE))
            if not rows:  # or not committed yet: there is news when it is
                await reader.news.wait()
            for row in rows:
                if not reader.reason:
                    await stream.send(_message(row))
            if rows and not reader.reason:
                await self._db.write(lambda db, rows=rows: _remove(db, [row[0] for row in rows]))  # type: ignore[misc]
                self._taken(aid, rows)

    async def _join(self, aid: int, topic: str) -> None:
        if aid in self._topics.get(topic, ()):
            return
        if sum(aid in aids for aids in self._topics.values()) >= TOPICS:
            raise OSError(errno.ENOBUFS, f"subscribe: {TOPICS} topics at most; cancel one first")
        self._topics[topic].add(aid)
        row = (aid, topic)
        await self._db.write(
            lambda db: db.execute("insert or ignore into subscriptions values (?, ?)", row)
        )

    async def _unsubscribe(self, aid: int, topic: str) -> None:
        """End a subscription, and drop what it gathered."""
        self._leave(aid, topic)
        rows = await self._db.write(lambda db: _drop(db, aid, topic))
        self._taken(aid, rows)

    def _leave(self, aid: int, topic: str) -> None:
        self._topics[topic].discard(aid)
        if not self._topics[topic]:
            del self._topics[topic]

    # -- agents ---------------------------------------------------------------------------------

    def _own(self, caller: Caller) -> int:
        if not caller.aid:
            raise ProcessLookupError(
                errno.ESRCH, "this connection is no agent and has no mailbox: register_agent first"
            )
        return self._table.get(caller.aid).aid

    def _alive(self, aid: int) -> bool:
        try:
            self._table.get(aid)
        except ProcessLookupError:
            return False
        return True


class _Reader:
    """One open stream of a topic. reason: why it is to end."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.reason = ""

    def end(self, reason: str) -> None:
        """End it."""
        self.reason = self.reason or reason
        self.news.set()


def _packed(body: object) -> bytes:
    packed = _encode(body)
    if len(packed) > BODY_MAX:
        raise OSError(errno.EINVAL, f"body: {len(packed)} bytes, the limit is {BODY_MAX}")
    return packed


def _message(row: tuple[Any, ...]) -> Message:
    id, t, sender, uid, topic, body = row
    return Message(id, t, sender, topic, _decode(body), uid)


def _load(db: Connection) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    rows = db.execute("select aid, sender, topic, length(body) from messages").fetchall()
    return rows, db.execute("select aid, topic from subscriptions").fetchall()


def _oldest(db: Connection, aid: int, topic: str, limit: int) -> list[tuple[Any, ...]]:
    """Return the oldest messages, as many as fit into a frame with room to spare."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    found = db.execute(
        "select id, t, sender, uid, topic, body from messages where aid = ? and topic = ? "
        "order by id limit ?",
        (aid, topic, limit),
    )
    for row in found.fetchall():
        size += len(row[5])
        if rows and size > 2 << 20:
            break
        rows.append(row)
    return rows


def _remove(db: Connection, ids: list[int]) -> None:
    db.conn.executemany("delete from messages where id = ?", [(id,) for id in ids])


def _insert_again(db: Connection, rows: list[tuple[Any, ...]]) -> None:
    db.conn.executemany(
        "insert into messages (id, t, aid, sender, uid, topic, body) values (?, ?, ?, ?, ?, ?, ?)",
        rows,
    )


def _drop(db: Connection, aid: int, topic: str) -> list[tuple[Any, ...]]:
    db.execute("delete from subscriptions where aid = ? and topic = ?", (aid, topic))
    rows = db.execute(
        "select id, t, sender, uid, topic, body from messages where aid = ? and topic = ?",
        (aid, topic),
    ).fetchall()
    _remove(db, [row[0] for row in rows])
    return rows


def _clear(db: Connection, aid: int) -> None:
    db.execute("delete from messages where aid = ?", (aid,))
    db.execute("delete from subscriptions where aid = ?", (aid,))
