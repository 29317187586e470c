"""Is all in order: `env` says what numbers made here depend on, `check` tries the laws on a method."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from trainlore.cli.options import AsJson
from trainlore.console import esc, say


def env(as_json: AsJson = False) -> None:
    """Say what numbers made here depend on: versions, device, cores, precision."""
    from trainlore.execute.record import environment
    from trainlore.placement import choose_device, use_bf16
    from trainlore.store import home

    device = choose_device("auto")
    found = {**environment(), "uses": str(device), "bf16": use_bf16("auto", device), "cache": str(home())}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for key, value in found.items():
        say(f"{key:14s} {value}")


def check(name: Annotated[str, typer.Argument(help="The name of a method, ours or of an installed package.")]) -> None:
    """Try every law on a method: the contract that all of ours keep."""
    from trainlore.checks import check as try_laws
    from trainlore.checks import laws

    broken = try_laws(name)
    for line in broken:
        say(f"[red]broken[/red] {esc(line)}")
    if broken:
        raise SystemExit(1)
    say(f"[green]{name} keeps all {len(laws(name))} laws[/green]")
