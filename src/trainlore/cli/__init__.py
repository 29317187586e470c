"""The command line: here its table of contents and what becomes of an error; a module for each subject.

    recipes   validate, prepare, cp: recipes, before anything is trained
    runs      run, resume
    races     race
    files     do, label: without a recipe
    lookup    ls, show, search, papers: what there is
    history   trail, report: what happened
    models    export, compress
    health    env, check

A command is a function in one of them and a line below. It imports what it needs when it runs, so that looking things up
never loads torch. Nothing else of Trainlore imports this package.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from trainlore.cli import files, health, history, lookup, models, races, recipes, runs
from trainlore.console import complain
from trainlore.errors import Bad

app = typer.Typer(
    name="trainlore",
    help="Every published way of training a model, as one short, tested, composable file. Start with: trainlore run",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: tuple[Callable[..., None], ...] = (  # in the order of the help
    runs.run,
    runs.resume,
    races.race,
    recipes.validate,
    recipes.prepare,
    files.do,
    files.label,
    lookup.ls,
    lookup.show,
    lookup.search,
    lookup.papers,
    recipes.cp,
    history.trail,
    history.report,
    models.export,
    models.compress,
    health.env,
    health.check,
)
for command in COMMANDS:
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        from trainlore import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the Python traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run a command; a user's mistake is one line and exit 2, never a traceback."""
    # Threads that spin while they wait make a training several times slower as soon as the machine has other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    full = "--traceback" in sys.argv
    try:
        app(standalone_mode=False)
    except Bad as error:
        if full:
            raise
        complain(str(error))
        raise SystemExit(2) from None
    except typer.Exit as done:
        raise SystemExit(done.exit_code) from None
    except (typer.Abort, KeyboardInterrupt):
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
    except OSError as error:
        if full:
            raise
        if error.errno == errno.ENOSPC:
            what = error.filename or "a file"
            complain(f"the disk is full: {what} could not be written; free some room and try again")
        else:
            complain(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        raise SystemExit(2) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # a mistake in the command itself
            complain(error.format_message())
            raise SystemExit(getattr(error, "exit_code", 2)) from None
        if full:
            raise
        blame = "(this looks like a fault of ours or of a method; --traceback shows where)"
        complain(f"{type(error).__name__}: {error}\n{blame}")
        raise SystemExit(1) from None
