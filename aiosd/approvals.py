"""Approvals: a request whose capability is to be asked for waits here until somebody answers.

    approvals = Approvals(settings, db, access, audit, events)
    await approvals.wait(caller, call, args)    # returns when it was allowed; PermissionError else

Who may grant on the object of a request may answer it, but never the one who asks. An approval is
for one request: the same call with the same arguments by the same caller. One that comes back
after the kernel was killed finds the question still open, or its answer waiting.

What must hold: what waits is durable and bounded; nobody's silence ever allows anything.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from aiosd.abi.accounts import Approve, ListPending, Pending
from aiosd.abi.call import Call, Syscall
from aiosd.access import Access, Caller
from aiosd.db import Connection, Database
from aiosd.events import Events
from aiosd.keys import answerer
from aiosd.owed import Debt, Debts, Log, owe
from aiosd.settings import Config

PENDING: Final = "pending"
ALLOWED: Final = "allowed"
DENIED: Final = "denied"

_encode = msgspec.msgpack.Encoder(order="sorted").encode
_COLUMNS: Final = "id, aid, uid, capability, object, call, print, t, expires, state, by"


@dataclass(slots=True)
class Question:
    """One row: who asks for what until when, and what was answered. answer: who waits for it."""

    id: int
    aid: int
    uid: int
    capability: str
    object: str
    call: str
    print: str
    t: float
    expires: float
    state: str = PENDING
    by: str = ""
    answer: asyncio.Future[None] | None = None

    def row(self) -> Pending:
        """Return it as list_pending shows it."""
        return Pending(
            self.id, self.aid, self.capability, self.object, self.t, self.expires, self.uid,
            self.call,
        )  # fmt: skip


class Approvals:
    """All questions that are open, or answered and not used yet. config: what is set now."""

    def __init__(
        self,
        config: Callable[[], Config],
        db: Database,
        access: Access,
        audit: Log,
        events: Events,
    ) -> None:
        self._config = config
        self._db = db
        self._access = access
        self._audit = audit
        self._debts = Debts(db, audit)
        self._events = events
        self._questions: dict[int, Question] = {}
        self._unborn: Counter[tuple[int, int]] = Counter()
        self.draining: Callable[[], bool] = lambda: False

    async def boot(self) -> None:
        """Take up what the last kernel left open, as far as its time is not over."""
        rows = await self._db.read(
            lambda db: db.execute(f"select {_COLUMNS} from approvals order by id").fetchall()
        )
        for row in rows:
            question = Question(*row)
            self._questions[question.id] = question
        await self._expire()

    def waits_for(self, aid: int) -> str:
        """Return "approval" when a request of the agent waits for one, else nothing."""
        waits = any(q.answer is not None and q.aid == aid for q in self._questions.values())
        return "approval" if waits else ""

    async def wait(self, caller: Caller, call: Syscall, args: Call) -> None:
        """Return once this request was approved.

        PermissionError when it was denied or nobody answered in time; BlockingIOError (EAGAIN)
        when too many wait already.
        """
        capability, object = self._access.question(caller, call, args)
        print = hashlib.sha256(call.name.encode() + b"\0" + _encode(args)).hexdigest()
        await self._expire()
        question = self._known(caller, print) or await self._ask(
            caller, capability, object, call.name, print
        )
        try:
            await self._answered(question)
        except asyncio.CancelledError:
            question.answer = None
            if not self.draining():
                self._forget_soon(question)
            raise
        question.answer = None
        state, by = question.state, question.by
        await self._forget(question)
        if state != ALLOWED:
            said = (
                f"{by} denied it"
                if by and state == DENIED
                else f"nobody approved it within {self._patience:g} s"
            )
            raise PermissionError(errno.EPERM, f"{call.name}: {capability} on {object}: {said}")

    def agent_ended(self, aid: int) -> None:
        """Close an agent's questions."""
        for question in [q for q in self._questions.values() if q.aid == aid]:
            if question.answer is None:
                self._forget_soon(question)

    # -- the calls ------------------------------------------------------------------------------

    async def sys_approve(self, caller: Caller, args: Approve) -> None:
        """Answer a request that waits; ENOENT when it waits no more or is not the caller's."""
        await self._expire()
        question = self._questions.get(args.id)
        if question is None or question.state != PENDING or question.by:
            raise FileNotFoundError(errno.ENOENT, f"no request {args.id} waits for approval")
        if not self._may_answer(caller, question):
            raise PermissionError(
                errno.EPERM,
                f"approve: {caller} may not answer request {args.id}; "
                f"who may grant on {question.object} may, but not who asks",
            )
        state = ALLOWED if args.allow else DENIED
        expires = time.time() + self._patience
        values = (state, caller.subject, expires, question.id)
        answer = answerer()

        def write(db: Connection) -> Debt:
            db.execute("update approvals set state = ?, by = ?, expires = ? where id = ?", values)
            answer(db, None)
            return owe(db, f"approval.{state}", caller, *_facts(question))

        async def settle() -> None:
            try:
                debt = await self._db.write(write, durable=True)
            except OSError:
                question.by = ""
                raise
            await self._debts.pay(debt)
            question.state, question.expires = state, expires
            self._wake(question)

        question.by = caller.subject  # from here on it has its answer
        self._settling = asyncio.ensure_future(settle())  # to its end, whoever waits for it
        await asyncio.shield(self._settling)

    async def sys_list_pending(self, caller: Caller, args: ListPending) -> list[Pending]:
        """List the requests that the caller may answer."""
        await self._expire()
        return [
            question.row()
            for question in self._questions.values()
            if question.state == PENDING and self._may_answer(caller, question)
        ]

    # -- the steps ------------------------------------------------------------------------------

    @property
    def _patience(self) -> float:
        return self._config().access.ask_timeout

    def _may_answer(self, caller: Caller, question: Question) -> bool:
        asker = (question.aid, question.uid) == (caller.aid, caller.uid)
        return not asker and self._access.may_grant(caller, question.object)

    def _known(self, caller: Caller, print: str) -> Question | None:
        """Return what this very request asked before, if nobody waits for it now."""
        wanted = (caller.aid, caller.uid, print)
        for question in self._questions.values():
            if question.answer is None and (question.aid, question.uid, question.print) == wanted:
                return question
        return None

    async def _ask(
        self, caller: Caller, capability: str, object: str, call: str, print: str
    ) -> Question:
        """Make a question and tell who may answer; durable before anybody sees it."""
        self._admit(caller)
        now = time.time()
        question = Question(
            0, caller.aid, caller.uid, capability, object, call, print, now, now + self._patience
        )
        values = (caller.aid, caller.uid, capability, object, call, print, now, question.expires)
        self._unborn[caller.aid, caller.uid] += 1
        try:
            question.id = await self._db.write(lambda db: _insert(db, values), durable=True)
        finally:
            self._unborn[caller.aid, caller.uid] -= 1
        self._questions[question.id] = question
        self._record("approval.ask", caller, question)
        self._events.emit(
            "approval.ask", caller.aid, request=question.id, call=call, capability=capability,
            object=object,
        )  # fmt: skip
        return question

    def _admit(self, caller: Caller) -> None:
        most = self._config().access.max_pending
        who = (caller.aid, caller.uid)
        mine = sum((q.aid, q.uid) == who for q in self._questions.values()) + self._unborn[who]
        if len(self._questions) + self._unborn.total() >= most or mine >= max(1, most // 8):
            raise BlockingIOError(
                errno.EAGAIN,
                f"{mine} of your requests wait for approval, {len(self._questions)} in all; the "
                f"limit is {most} (access.max_pending), an eighth of it for one caller",
            )

    async def _answered(self, question: Question) -> None:
        """Return once there is an answer, or time is up."""
        if question.state != PENDING:
            return
        question.answer = asyncio.get_running_loop().create_future()
        left = max(0.0, question.expires - time.time())
        await asyncio.wait({question.answer}, timeout=left)
        if question.state == PENDING:
            question.state = DENIED
            self._record("approval.timeout", None, question)

    def _wake(self, question: Question) -> None:
        if question.answer is not None and not question.answer.done():
            question.answer.set_result(None)

    async def _expire(self) -> None:
        """Close what nobody waits for and whose time is over."""
        now = time.time()
        for question in list(self._questions.values()):
            if question.answer is None and question.expires <= now:
                await self._forget(question)

    async def _forget(self, question: Question) -> None:
        """Use a question up: durable before the request that it was about goes on."""
        self._questions.pop(question.id, None)
        await self._db.write(lambda db: _delete(db, question.id), durable=True)

    def _forget_soon(self, question: Question) -> None:
        self._questions.pop(question.id, None)
        self._db.write_soon(lambda db: _delete(db, question.id))

    def _record(self, kind: str, caller: Caller | None, question: Question) -> None:
        self._audit.record(kind, caller, *_facts(question))


def _facts(question: Question) -> tuple[int, dict[str, Any]]:
    """Return what the audit log says of a question: the agent that it is about, and the rest."""
    asker = f"agent:{question.aid}" if question.aid else f"uid:{question.uid}"
    target = int(question.object[6:]) if question.object.startswith("agent:") else 0
    facts = {"request": question.id, "asked_by": asker, "capability": question.capability}
    return target, {**facts, "object": question.object, "call": question.call}


def _insert(db: Connection, values: tuple[object, ...]) -> int:
    row = db.execute(
        "insert into approvals (aid, uid, capability, object, call, print, t, expires, state) "
        "values (?, ?, ?, ?, ?, ?, ?, ?, 'pending')",
        values,
    )
    return int(row.lastrowid or 0)


def _delete(db: Connection, id: int) -> None:
    db.execute("delete from approvals where id = ?", (id,))
