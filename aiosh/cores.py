"""Commands about cores and their schedule: cores, route, models, sched."""

from __future__ import annotations

import json as json_
import os
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from aiosh import link, offers, tables
from aiosh.arguments import CoreName, Json
from aiosh.tables import Column

if TYPE_CHECKING:
    from aiosd.abi.cores import Core, Model, RouteCore
    from aiosd.abi.process import Sched, SchedRow

app = typer.Typer()
core_app = typer.Typer(invoke_without_command=True)
app.add_typer(core_app, name="cores", help="List cores; add, remove or drain one.")
model_app = typer.Typer(invoke_without_command=True)
app.add_typer(model_app, name="models", help="List models; show or remove one.")
route_app = typer.Typer(no_args_is_help=True)
app.add_typer(route_app, name="route", help="Show which core requests get, and why.")

CORE_COLOURS: Final = {"ready": "green", "failed": "red", "loading": "yellow"}

CORES: Final[list[Column[Core]]] = [
    Column("CORE", lambda core: core.name, least=6),
    Column("STATE", lambda core: core.state, colour=lambda c: CORE_COLOURS.get(c.state, "")),
    Column("EXACT", lambda core: core.exact),
    Column("RUN", lambda core: f"{core.running}/{core.slots}", right=True),
    Column("QUEUE", lambda core: str(core.queued), right=True),
    Column("HELD", lambda core: str(core.resident), right=True),
    Column("N_CTX", lambda core: str(core.n_ctx), right=True),
    Column(
        "IN/OUT", lambda c: f"{tables.count(c.tokens_in)}/{tables.count(c.tokens_out)}", right=True
    ),
    Column("TOK/S", lambda core: f"{core.tokens_per_s:.1f}", right=True),
    Column("KV", lambda core: tables.size(core.kv_bytes), right=True),
    Column("RSS", lambda core: tables.size(core.rss), right=True),
    Column("SWAPS", lambda core: tables.count(core.switches), right=True),
    Column("RST", lambda core: str(core.restarts), right=True),
    Column("SETTING", lambda core: link.trouble(core) or core.setting, least=7),
]
"""What `cores` shows. RUN: sequences running of the slots there are; HELD: contexts with KV in
slots; SWAPS: context switches; RST: restarts of the worker; SETTING: what the probe chose."""


@core_app.callback()
def cores(ctx: typer.Context, json: Json = False) -> None:
    """List cores: state, exactness, load, KV, the setting that the probe chose."""
    if ctx.invoked_subcommand is None:
        _list(json)


@core_app.command("list")
def list_(json: Json = False) -> None:
    """List cores, as `cores` alone does."""
    _list(json)


def _list(json: bool) -> None:
    with link.kernel() as kernel:
        rows = kernel.list_cores()
    tables.show(CORES, rows, json)


@core_app.command()
def add(
    model: Annotated[
        str,
        typer.Argument(help="GGUF file, packaged model, hf:OWNER/NAME, or ray://HOST:PORT/FILE"),
    ],
    name: Annotated[str, typer.Option("--name", "-n", help="default: the model's")] = "",
    driver: Annotated[
        str, typer.Option("--driver", help="llama, ray, openai, anthropic, gemini or fake")
    ] = "llama",
    slots: Annotated[int, typer.Option("--slots", min=1, max=256, help="run at once")] = 8,
    n_ctx: Annotated[int, typer.Option("--n-ctx", min=128, help="tokens a slot")] = 2048,
    threads: Annotated[int, typer.Option("--threads", min=0, help="0: all processors")] = 0,
    exact: Annotated[bool, typer.Option("--exact/--fast", help="tokens as in a solo run")] = True,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="another setting; repeatable"),
    ] = None,
    json: Json = False,
) -> None:
    """Load a model as a core; returns when it is ready, or says why it can't be."""
    path = os.path.abspath(os.path.expanduser(model)) if _is_path(model) else model
    with link.kernel() as kernel:
        core = kernel.add_core(
            model=path, name=name, driver=driver, slots=slots, n_ctx=n_ctx, threads=threads,
            exact=exact, options=dict(map(_setting, option or [])),
        )  # fmt: skip
    if json:
        tables.print_json(core)
    elif core.state == "failed":
        raise link.Failure(f"core {core.name} failed: {link.trouble(core)}")
    else:
        print(core.name)


def _setting(text: str) -> tuple[str, Any]:
    """Read NAME=VALUE: a value as in JSON, else a text as it stands."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise link.Failure(f"--option {text}: write it as kv_k=q8_0", 2)
    try:
        return name, json_.loads(value)
    except ValueError:
        return name, value


def _is_path(model: str) -> bool:
    named = model.startswith(("hf:", "ray://"))
    return not named and ("/" in model or model.endswith(".gguf") or os.path.exists(model))


@core_app.command("rm", hidden=True)
@core_app.command()
def remove(name: CoreName) -> None:
    """Remove a core at once; requests on it end as cancelled."""
    with link.kernel() as kernel:
        kernel.remove_core(name=name)


@core_app.command()
def drain(name: CoreName) -> None:
    """Let a core finish what it has, give it nothing new, then remove it."""
    with link.kernel() as kernel:
        kernel.drain_core(name=name)


ROUTE: Final[list[Column[RouteCore]]] = [
    Column("ROUTE", lambda row: row.leg, least=8),
    Column("PLACE", lambda row: str(row.place) if row.place else "-", right=True),
    Column("CORE", lambda row: row.name, least=6),
    Column("CLASS", lambda row: row.capability),
    Column("LOAD", lambda row: f"{row.requests}/{row.slots}", right=True),
    Column("COST", lambda row: f"${row.dollars:.6g}" if row.dollars else "free", right=True),
    Column("FIRST", lambda r: f"{r.first_token_s:.2f}s" if r.first_token_s else "?", right=True),
    Column("TOK/S", lambda r: f"{r.tokens_per_s:.1f}" if r.tokens_per_s else "?", right=True),
    Column("WHY NOT", lambda row: row.why, least=7),
]
"""What `route explain` shows. FIRST: expected seconds to the first token; TOK/S: after it."""


@route_app.command()
def explain(
    route: Annotated[str, typer.Argument(help="a rule of aiosd.toml, or a policy")] = "",
    needs: Annotated[str, typer.Option("--needs", help="class of core")] = "",
    feature: Annotated[
        list[str] | None, typer.Option("--feature", "-f", help="it must have this; again for more")
    ] = None,
    min_context: Annotated[int, typer.Option("--context", min=0, help="tokens of window")] = 0,
    max_price: Annotated[float | None, typer.Option("--max-price", min=0, help="dollars")] = None,
    max_latency: Annotated[
        float | None, typer.Option("--max-latency", min=0, help="seconds to the first token")
    ] = None,
    prompt: Annotated[int, typer.Option("--prompt", min=0, help="tokens read")] = 0,
    tokens: Annotated[int, typer.Option("--max-tokens", min=0, help="tokens written")] = 0,
    agent: Annotated[str, typer.Option("--agent", help="name of the agent that asks")] = "",
    json: Json = False,
) -> None:
    """Say which core a request would get now, why, and what keeps it from the others."""
    with link.kernel() as kernel:
        found = kernel.explain_route(
            route=route, needs=needs, features=feature or [], min_context=min_context,
            max_price=max_price, max_latency=max_latency, prompt_tokens=prompt, max_tokens=tokens,
            agent=agent,
        )  # fmt: skip
    if json:
        tables.print_json(found)
        return
    print(f"{found.core or 'no core'}: {found.reason}")
    tables.show(ROUTE, found.cores, json=False)


MODELS: Final[list[Column[Model]]] = [
    Column("NAME", lambda row: row.name, least=12),
    Column("KIND", lambda row: row.kind),
    Column("SIZE", lambda row: tables.size(row.bytes), right=True),
    Column("CORES", lambda row: " ".join(row.cores)),
    Column("PATH", lambda row: row.path, least=12),
]
"""What `models` shows: what packages carry, what the hub's cache holds, and other files in use."""

RUNNING: Final[list[Column[Core]]] = [
    Column("CORE", lambda core: core.name, least=8),
    Column("DRIVER", lambda core: core.driver),
    Column("KIND", lambda core: core.kind),
    Column("STATE", lambda core: core.state, colour=lambda c: CORE_COLOURS.get(c.state, "")),
    Column("EXACT", lambda core: core.exact),
    Column("N_CTX", lambda core: str(core.n_ctx), right=True),
    Column("TRAINED", lambda core: str(core.n_ctx_train), right=True),
    Column("KV/TOKEN", lambda core: tables.size(core.bytes_per_token), right=True),
    Column("MODEL", lambda core: core.model, least=12),
]
"""What `models show` says of the cores that run a model."""


@model_app.callback()
def models(ctx: typer.Context, json: Json = False) -> None:
    """List the models of this machine, and the cores that run them."""
    if ctx.invoked_subcommand is None:
        with link.kernel() as kernel:
            rows = kernel.list_models()
        tables.show(MODELS, rows, json)


ModelName = Annotated[
    str,
    typer.Argument(help="as `models` shows it, or hf:OWNER/NAME", autocompletion=offers.models),
]


@model_app.command("show")
def show_model(name: ModelName, json: Json = False) -> None:
    """Describe a model, and how the cores run it."""
    with link.kernel() as kernel:
        found = [row for row in kernel.list_models() if name in (row.name, row.path)]
        cores = kernel.list_cores()
    if not found:
        raise link.Failure(f"no model {name}; `models` lists those there are")
    running = [core for core in cores if core.name in found[0].cores]
    if json:
        tables.print_json({"model": found[0], "cores": running})
        return
    tables.facts([(column.head.lower(), column.cell(found[0]) or "-") for column in MODELS])
    if running:
        print()
        tables.show(RUNNING, running, json=False)


@model_app.command("rm", hidden=True)
@model_app.command("remove")
def remove_model(name: ModelName) -> None:
    """Delete a model of the Hugging Face Hub from the cache."""
    with link.kernel() as kernel:
        freed = kernel.remove_model(name=name)
    print(f"{tables.size(freed)} free again")


SCHED: Final[list[Column[SchedRow]]] = [
    Column("CORE", lambda row: row.core, least=8),
    Column("PLACE", lambda row: str(row.place) if row.place >= 0 else "", right=True),
    Column("AID", lambda row: str(row.aid), right=True),
    Column("CTX", lambda row: str(row.cid), right=True),
    Column("S", lambda row: row.state),
    Column("NI", lambda row: str(row.nice), right=True),
    Column("USED", lambda row: str(row.used), right=True),
]
LEVEL: Final[Column[SchedRow]] = Column("LEVEL", lambda row: str(row.level), right=True)
VIRTUAL: Final[Column[SchedRow]] = Column("VIRTUAL", lambda row: f"{row.virtual:+.0f}", right=True)
WIDTH: Final[Column[SchedRow]] = Column("SLOTS", lambda row: str(row.width), right=True)
WAITS: Final[Column[SchedRow]] = Column("AFTER", lambda row: " ".join(map(str, row.after)))


@app.command()
def sched(
    policy: Annotated[
        str, typer.Argument(help="change to this policy", autocompletion=offers.policies)
    ] = "",
    quantum: Annotated[
        int, typer.Option("--quantum", "-q", min=0, help="tokens; 0: unchanged")
    ] = 0,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", metavar="NAME=NUMBER", help="another setting; again for more"
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show the scheduling policy and the run queues, or change the policy while running."""
    options = dict(map(_number, option or []))
    with link.kernel() as kernel:
        if policy or quantum or options:
            state = kernel.set_sched(policy=policy, quantum=quantum, options=options)
        else:
            state = kernel.get_sched()
    if json:
        tables.print_json(state)
        return
    known = [tables.paint(n, "bold") if n == state.policy else n for n in state.policies]
    print(f"policy {state.policy} (of {' '.join(known)})")
    print(f"quantum {state.quantum} tokens, {state.preemptions} preemptions")
    if state.options:
        print(", ".join(f"{name} {value:g}" for name, value in state.options.items()))
    if state.rows:
        tables.show(_columns(state), state.rows, json=False)


def _number(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise link.Failure(f"--option {text}: write it as boost=4096", 2) from None


def _columns(state: Sched) -> list[Column[SchedRow]]:
    """Return the columns that this policy, and what is queued, have something for."""
    levels = state.policy in ("mlfq", "priority")
    more = [
        (LEVEL, levels),
        (VIRTUAL, state.policy == "fair"),
        (WIDTH, any(row.width > 1 for row in state.rows)),
        (WAITS, any(row.after for row in state.rows)),
    ]
    return SCHED + [column for column, wanted in more if wanted]
