"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value: seed=1, steps.3.keep=0.2 (a step's number or name)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
On = Annotated[str, typer.Option("--on", help="Where passes over more than 16,384 rows run: local or ray.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
OfRun = Annotated[str | None, typer.Option("--model", help="The name of a model of the run (default: the last one).")]
