"""The command line. Every command imports what it needs when it runs, so that looking things up never loads torch."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trainlore.errors import Bad
from trainlore.races import command

app = typer.Typer(
    name="trainlore",
    help="Every published way of training a model, as one short, tested, composable file. Start with: trainlore run",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
FIRST = "first_life"
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value: seed=1, steps.3.keep=0.2 (a step's number or name)."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
On = Annotated[str, typer.Option("--on", help="Where passes over more than 16,384 rows run: local or ray.")]


def say(text: Any = "") -> None:
    """Print with colour where there is a terminal; elsewhere a line stays one line, however long."""
    from rich import get_console

    console = get_console()
    console.print(text, soft_wrap=not console.is_terminal)


def esc(text: Any) -> str:
    """Text that is not ours, for `say`: square brackets in it are no markup."""
    from rich.markup import escape

    return escape(str(text))


def _version(wanted: bool) -> None:
    if wanted:
        from trainlore import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the Python traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """Options before the command."""


def recipe_path(name: str | None) -> Path:
    """A recipe file, or a starter recipe by its name."""
    if name is None:
        name = FIRST
    path = Path(name)
    found = {p.stem: p for p in starters()}
    if path.exists() or path.parent != Path(".") or (path.suffix in (".yaml", ".yml") and path.stem not in found):
        return path
    if path.stem not in found:
        from trainlore.registry import near

        raise Bad(f"no recipe {name!r}" + (near(path.stem, found) or f"; starters are {', '.join(sorted(found))}"))
    return found[path.stem]


def starters() -> list[Path]:
    """The recipes that come with the package."""
    return sorted((Path(__file__).parent / "recipes").glob("*.yaml"))


# ---- running


@app.command()
def run(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe file or the name of a starter (default: first_life).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder (default: runs/NAME-TIME).")] = None,
    sets: Sets = None,
    force: Annotated[bool, typer.Option(help="Replace the run folder if it exists.")] = False,
    strict: Annotated[bool, typer.Option(help="Fail when a part of a training did nothing.")] = False,
    on: On = "local",
    profile: Annotated[bool, typer.Option(help="Write a trace of a few steps of each training.")] = False,
    report_to: Annotated[str, typer.Option(help="Trackers to tell as well: tensorboard, mlflow, wandb.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Run a recipe: a model's whole life, step by step, with a report at the end.

    Without a recipe this runs [bold]first_life[/bold]: about five minutes on two cores, no network.
    On several devices: [bold]torchrun --nproc-per-node N -m trainlore run RECIPE --out FOLDER[/bold].
    """
    import time

    from trainlore import recipe as recipes

    made = recipes.read(recipe_path(recipe), sets)
    folder = out or Path("runs") / f"{_slug(made.spec.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    if out is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Bad("several processes need one folder: say --out FOLDER")
    from trainlore.reporting import named

    _run(made, folder, quiet, force=force, strict=strict, on=on, profile=profile, report_to=named(report_to))


@app.command()
def resume(
    folder: Annotated[Path, typer.Argument(help="The folder of an interrupted run.")],
    strict: Annotated[bool, typer.Option(help="Fail when a part of a training did nothing.")] = False,
    on: On = "local",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")] = False,
) -> None:
    """Go on with an interrupted run: finished steps are kept, a training goes on from its last checkpoint."""
    from trainlore import recipe as recipes

    if (folder / "race.json").exists():
        command.run(folder, None, None, True, quiet)
        return
    if not (folder / "run.json").exists() and not (folder / "recipe.yaml").exists():
        raise Bad(f"{folder} is not a run: it has no run.json")
    _run(recipes.read(folder / "recipe.yaml"), folder, quiet, resume=True, strict=strict, on=on)


app.command()(command.race)


def _slug(name: str) -> str:
    """A recipe's name as a folder's: nothing in it can lead elsewhere."""
    import re

    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "run"


def _run(made: Any, folder: Path, quiet: bool, **how: Any) -> None:
    from transformers.utils import logging

    from trainlore.memory import keep_freed
    from trainlore.progress import bars

    keep_freed()
    leads = os.environ.get("RANK", "0") == "0"
    with bars(not quiet and leads and sys.stderr.isatty()) as shown:
        tell = (
            (lambda text: shown.console.print(text, highlight=False)) if shown else say if leads else lambda text: None
        )
        there = (folder / "run.json").exists() and not how.get("resume")  # an earlier run: then its state is not news
        from trainlore.execute import execute
        from trainlore.runs import Interrupted

        logging.disable_progress_bar()  # one set of bars is enough
        try:
            execute(made, folder, bars=shown, tell=tell, **how)
        except (Interrupted, KeyboardInterrupt):
            on = (folder / "run.json").exists() and not there
            tell("[yellow]stopped[/yellow]" + (f"; go on with: trainlore resume {esc(folder)}" if on else ""))
            raise SystemExit(130) from None
        except Exception:
            if (folder / "run.json").exists() and not there:
                tell(f"[red]failed[/red]; what was finished is kept: trainlore resume {esc(folder)}")
            raise
    if leads:
        _table(folder)


def _table(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    record = json.loads((folder / "run.json").read_text())
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name, side in (
        ("", "right"),
        ("step", "left"),
        ("gave", "left"),
        ("work", "right"),
        ("seconds", "right"),
        ("result", "left"),
    ):
        table.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    for s in record["steps"]:
        seconds = f"{s['seconds']:.1f}" + ("*" if s["cached"] else "")
        table.add_row(
            str(s["number"]), s["name"], "$" + s["as"], f"{s['work']:.2g}" if s["work"] else "", seconds, brief(s)
        )
    console = Console() if sys.stdout.isatty() else Console(width=160)
    console.print(table)
    total = sum(s["seconds"] for s in record["steps"] if not s["cached"])
    console.print(
        f"\n{total:.0f} s, {record['meter']['work']:.3g} FLOPs"
        + ("   (* from an earlier run)" if any(s["cached"] for s in record["steps"]) else "")
    )
    if dead := sorted({e["part"] for s in record["steps"] for e in s["effects"] if e["dead"]}):
        console.print(f"[red]dead switches: {', '.join(dead)} did nothing[/red]")
    console.print(f"report: [bold]{esc(folder / 'report.html')}[/bold]", highlight=False, soft_wrap=True)


def brief(step: dict[str, Any]) -> str:
    """A finished step's result in a few words."""
    if step["noun"] == "Data":
        words = f"{step['data']['rows']:,} rows"
        return words + (f" of {step['rows_in']:,}" if step.get("rows_in") and not step.get("made") else "")
    if step["noun"] == "Model":
        words = f"{step['model']['size'] / 1e6:.2f} M weights"
        return words + (
            f", loss {step['curve']['loss'][-1]:.3f}" if step.get("curve") and step["kind"] == "Fit" else ""
        )
    return ", ".join(f"{m['metric']} {m['value']:.4g}" for m in step["report"][:3])


@app.command()
def validate(
    recipe: Annotated[str, typer.Argument(help="A recipe file or the name of a starter.")], sets: Sets = None
) -> None:
    """Check a recipe without running it: every error at once, with the nearest names. Loads no method."""
    from trainlore import recipe as recipes

    made = recipes.read(recipe_path(recipe), sets)
    for step in made.steps:
        wires = ", ".join(f"${w}" for w in step.wires.values())
        parts = f"  with {', '.join(p for p, _ in step.parts)}" if step.parts else ""
        say(f"{step.where:32s} {wires} → ${step.gives}{parts}")
    say(f"[green]{len(made.steps)} steps, no errors[/green]")


@app.command()
def prepare(
    recipe: Annotated[str, typer.Argument(help="A recipe file or the name of a starter.")] = FIRST,
    debug: Annotated[
        bool, typer.Option(help="Show tokens, masks, packed boundaries, kept and dropped rows with scores.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show of each.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Keep the prepared data here (default: runs/prepared-NAME).")] = None,
    sets: Sets = None,
) -> None:
    """Run only the steps that make data, up to the first training, and show what a model would see."""
    from trainlore import prepare as preparing
    from trainlore import recipe as recipes

    made = recipes.read(recipe_path(recipe), sets)
    preparing.prepare(made, out or Path("runs") / f"prepared-{_slug(made.spec.name)}", debug, rows)


@app.command()
def do(
    method: Annotated[str, typer.Argument(help="The name of a step: see trainlore ls.")],
    data: Annotated[str | None, typer.Option(help="A file, folder, world:NAME/PART or hub:ID.")] = None,
    model: Annotated[str | None, typer.Option(help="A preset, a Hugging Face folder or id.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the result goes: .jsonl .csv .parquet, a folder for a model, .json for a report."),
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="A field: keep=0.2, target=dev.jsonl (nouns by their source).")
    ] = None,
    seed: Annotated[int, typer.Option(help="What every random number of the step is drawn by.")] = 0,
    force: Annotated[bool, typer.Option(help="Replace OUT if it exists.")] = False,
    on: On = "local",
) -> None:
    """Run one step on files: trainlore do dsir --data pool.jsonl --set target=dev.jsonl --set keep=0.1 --out kept.jsonl"""
    from trainlore import single

    single.do(method, data, model, out, sets or [], seed, force, on)


@app.command()
def label(
    data: Annotated[str, typer.Argument(help="The rows: a file, folder, world:NAME/PART or hub:ID.")],
    out: Annotated[Path, typer.Option(help="The file of labels, JSONL, to begin or go on with.")],
    choices: Annotated[str, typer.Option(help="The classes, with commas: negative,positive or n=negative,p=positive.")],
    column: Annotated[str, typer.Option(help="What the label is called.")] = "label",
    by: Annotated[str | None, typer.Option(help="A column of scores: the highest is asked first.")] = None,
    show: Annotated[str, typer.Option(help="The columns to show, with commas (default: all that can be read).")] = "",
) -> None:
    """Label rows by hand, one at a time; every answer is kept at once, and the same command goes on later."""
    from trainlore import labelling

    words = [c.strip() for c in choices.split(",") if c.strip()]
    labelling.label(data, out, column, words, [c for c in show.split(",") if c], by)


# ---- looking things up


@app.command()
def ls(
    family: Annotated[str | None, typer.Option(help="Only this family: data, data/select, train/schedule, ...")] = None,
    kind: Annotated[str | None, typer.Option(help="Only Curate, Shape, Fit, Measure or Part.")] = None,
    slot: Annotated[str | None, typer.Option(help="Only parts that act in this slot of the loop.")] = None,
    verdict: Annotated[
        str | None, typer.Option(help="Only reproduced, not reproduced here, contradicted or untried.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods there are."""
    from trainlore import cards
    from trainlore.registry import index, near

    families = {e["card"]["family"] for e in index().values()}
    if family and not any(f == family or f.startswith(family + "/") for f in families):
        tops = sorted(families | {f.split("/")[0] for f in families})
        raise Bad(f"no family {family!r}" + (near(family, tops) or f"; families are {', '.join(sorted(families))}"))
    if kind and kind.capitalize() not in ("Curate", "Shape", "Fit", "Measure", "Part"):
        raise Bad(f"no kind {kind!r}; kinds are Curate, Shape, Fit, Measure, Part")
    verdicts = ("reproduced", "not reproduced here", "contradicted", cards.UNTRIED)
    if verdict and verdict not in verdicts:
        raise Bad(f"no verdict {verdict!r}" + (near(verdict, verdicts) or f"; verdicts are {', '.join(verdicts)}"))
    if slot:
        slots = {s for e in index().values() if e["kind"] == "Part" for s in e["slots"]}
        if slot not in slots:
            raise Bad(f"no slot {slot!r}" + (near(slot, slots) or f"; slots are {', '.join(sorted(slots))}"))
    rows = []
    for name, e in sorted(index().items(), key=lambda i: (i[1]["card"]["family"], i[0])):
        found = e["card"]["family"], e["kind"], e["slots"] if e["kind"] == "Part" else [], cards.verdict(name)
        if family and not (found[0] == family or found[0].startswith(family + "/")):
            continue
        if (
            (kind and found[1] != kind.capitalize())
            or (slot and slot not in found[2])
            or (verdict and found[3] != verdict)
        ):
            continue
        rows.append(
            {
                "name": name,
                "family": found[0],
                "kind": found[1],
                "slots": found[2],
                "verdict": found[3],
                "summary": e["summary"],
                "year": e["card"]["year"],
            }
        )
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    width = max((len(r["name"]) for r in rows), default=0)
    before, lines = None, []
    for r in rows:
        if r["family"] != before:
            lines.append(f"\n[bold]{r['family']}[/bold]")
            before = r["family"]
        mark = {"reproduced": "[green]+[/green]", "contradicted": "[red]-[/red]", "untried": "[dim]?[/dim]"}.get(
            r["verdict"], "[yellow]~[/yellow]"
        )
        lines.append(f"  {mark} {r['name']:<{width}}  [dim]{r['kind']:<7}[/dim] {esc(r['summary'])}")
    lines.append(
        f"\n{len(rows)} methods   [dim]here: [green]+[/green] reproduced  [yellow]~[/yellow] not reproduced  [red]-[/red] contradicted  ? untried[/dim]"
    )
    say("\n".join(lines))


@app.command()
def show(name: Annotated[str, typer.Argument(help="The name of a method.")], as_json: AsJson = False) -> None:
    """Show a method's card: what it does, its formula, its fields, what was measured here."""
    from rich.console import Console
    from rich.markdown import Markdown

    from trainlore import cards
    from trainlore.registry import entry

    if as_json:
        print(json.dumps({"name": name, **entry(name), "result": cards.results().get(name)}, indent=1))
    elif sys.stdout.isatty():
        Console().print(Markdown(cards.page(name) if entry(name) else ""))
    else:
        print(cards.page(name) if entry(name) else "")


@app.command()
def search(
    question: Annotated[str, typer.Argument(help='What you want, in words: "which labels are wrong".')],
    top: Annotated[int, typer.Option(min=1, help="How many answers.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Find methods and papers by what they are for."""
    from trainlore.search import search as find

    found = find(question, top)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    if not found:
        raise Bad(f"nothing fits {question!r}; try other words, or trainlore ls")
    for f in found:
        mark = (
            "[bold]" + f["name"] + "[/bold]"
            if f["what"] == "method"
            else f"[dim]{f['name']} (paper, no method yet)[/dim]"
        )
        say(f"{f['score']:6.1f}  {mark}  {esc(f['text'])}")


@app.command()
def papers(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    missing: Annotated[bool, typer.Option(help="Only those without a method.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the literature: every paper with the methods that implement it, or the reason why there is none."""
    from trainlore.papers import papers as all_papers
    from trainlore.registry import index, near

    rows = all_papers(index())
    if family:
        families = {p["family"] for p in rows}
        rows = [p for p in rows if p["family"] == family or p["family"].startswith(family.rstrip("/") + "/")]
        if not rows:
            tops = sorted(families | {f.split("/")[0] for f in families})
            raise Bad(f"no family {family!r}" + (near(family, tops) or f"; families are {', '.join(sorted(families))}"))
    rows = [p for p in rows if not (missing and p["methods"])]
    if as_json:
        keys = ("id", "title", "family", "kind", "methods", "reason")
        print(json.dumps([{k: p[k] for k in keys} for p in rows], indent=1))
        return
    for p in rows:
        answer = f"[green]{', '.join(p['methods'])}[/green]" if p["methods"] else f"[dim]{esc(p['reason'])}[/dim]"
        say(f"[bold]{p['id']}[/bold] {esc(p['title'])}  [dim]{p['family']}[/dim]\n      {answer}")
    say(f"\n{len(rows)} papers, {sum(bool(p['methods']) for p in rows)} with a method")


@app.command()
def cp(
    name: Annotated[str | None, typer.Argument(help="A starter recipe.")] = None,
    to: Annotated[Path, typer.Argument(help="Where to put it.")] = Path("."),
    force: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
) -> None:
    """Copy a starter recipe here, to be changed. Without a name, list them."""
    found = {p.stem: p for p in starters()}
    if name is None:
        for stem, path in found.items():
            first = next(
                (
                    line.partition("name:")[2].strip()
                    for line in path.read_text().splitlines()
                    if line.startswith("name:")
                ),
                "",
            )
            say(f"[bold]{stem}[/bold]  {first}")
        return
    if name not in found:
        from trainlore.registry import near

        raise Bad(f"no starter recipe {name!r}" + (near(name, found) or f"; there are {', '.join(found)}"))
    target = to / f"{name}.yaml" if to.is_dir() else to
    if target.exists() and not force:
        raise Bad(f"{target} exists: say --force to replace it")
    if not target.parent.is_dir():
        raise Bad(f"cannot write {target}: there is no folder {target.parent}")
    target.write_text(found[name].read_text())
    say(f"{esc(target)}; run it with: trainlore run {esc(target)}")


# ---- looking back


@app.command()
def trail(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    row: Annotated[int | None, typer.Option(help="The id of a row.")] = None,
    of: Annotated[
        str | None, typer.Option(help="The noun whose row it is (default: the first data of the recipe).")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The name of a model of the run; '' for the last one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell the story of a row (--row 123) or of a model (--model NAME) through a run."""
    from trainlore import trail as trails

    if (row is None) == (model is None):
        raise Bad("say --row ID or --model NAME")
    if row is not None:
        lines = trails.row(folder, row, of.lstrip("$") if of else None)
        if as_json:
            print(trails.as_json(lines))
            return
        for line in lines:
            scores = ", ".join(
                f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in line["scores"].items()
            )
            say(
                f"{line['step']:2d} {line['method']:<22} row {line['row']:<8} [bold]{line['what']}[/bold]  {esc(scores)}"
            )
            say(f"     [dim]{esc(repr(line['text'][:110]))}[/dim]")
        return
    steps = trails.model(folder, model.lstrip("$") if model else None)
    if as_json:
        print(trails.as_json(steps))
        return
    for s in steps:
        data = f"  data ${s['wires']['data']}" if "data" in s["wires"] else ""
        say(
            f"{s['number']:2d} [bold]{s['name']}[/bold] → ${s['as']}{data}  {s['work']:.3g} FLOPs, {s['seconds']:.1f} s, {brief(s)}"
        )


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write the report of a run or a race anew and say where it is."""
    from trainlore import page
    from trainlore.races import page as race_page
    from trainlore.trail import opened

    if (folder / "race.json").exists():
        say(esc(race_page.write(folder)))
        return
    opened(folder)
    say(esc(page.write(folder)))


@app.command()
def export(
    source: Annotated[Path, typer.Argument(help="A run folder or a Hugging Face folder.")],
    to: Annotated[Path, typer.Option(help="The folder to write.")],
    form: Annotated[
        str, typer.Option("--format", help="hf, compressed-tensors (packed weights), gguf, onnx or masked (no zeros).")
    ] = "hf",
    model: Annotated[str | None, typer.Option(help="The name of a model of the run (default: the last one).")] = None,
    force: Annotated[bool, typer.Option(help="Replace the folder if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model for a runtime, and check that what that runtime makes of it gives the same outputs."""
    from trainlore import single

    record = single.export(source, to, model, force, form)
    if as_json:
        print(json.dumps(record, indent=1))
        return
    loss = f", loss {record['loss_change']:+.2g}" if "loss_change" in record else ""
    say(
        f"{esc(to)}  [dim]({record['runtime']}: relative distance of the logits {record['distance']:.1e}, "
        f"{record['tolerance']:.1e} allowed{loss})[/dim]"
    )
    say(
        f"{record['bytes'] / 1e6:,.2f} MB on disk, {record['bytes_before'] / 1e6:,.2f} MB of weights before; "
        f"{record['tokens_per_second']:,.0f} tokens a second there, {record['tokens_per_second_before']:,.0f} here"
    )


@app.command()
def compress(
    source: Annotated[Path, typer.Argument(help="A run folder or a Hugging Face folder.")],
    data: Annotated[
        str, typer.Option(help="Rows of the kind the model reads: a path, world:NAME/PART or hub:OWNER/NAME.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    to: Annotated[str, typer.Option(help="Bits a weight at most, on average: 4bit.")] = "4bit",
    goal: Annotated[str, typer.Option(help='What it may cost: "loss +1 %" or "loss +0.02".')] = "loss +1 %",
    rows: Annotated[int, typer.Option(help="Calibration rows.")] = 64,
    model: Annotated[str | None, typer.Option(help="The name of a model of the run (default: the last one).")] = None,
    force: Annotated[bool, typer.Option(help="Replace what an earlier search wrote.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what came of it.")] = False,
) -> None:
    """Search methods and bits a layer for the smallest model within a goal; a quarter of the rows judges."""
    from trainlore import compressing, single
    from trainlore.nouns import Data

    found = single.model_in(source, model)
    record = compressing.compress(
        found, Data.of(data), to, goal, out, rows, force, tell=(lambda text: None) if quiet else say
    )
    best = next(p for p in record["points"] if p["name"] == record["chosen"])
    say(
        f"[bold]{best['name']}[/bold]: {best['bytes'] / 1e6:,.2f} MB instead of {record['bytes_before'] / 1e6:,.2f}, "
        f"loss {best['change']:+.4f} ± {best['stderr']:.4f}; the front is in {esc(out / 'report.html')}"
    )
    say(f"[dim]pack it: trainlore export {esc(out / 'model')} --to PLACE --format compressed-tensors[/dim]")


@app.command()
def env(as_json: AsJson = False) -> None:
    """Say what numbers made here depend on: versions, device, cores, precision."""
    from trainlore.execute import environment
    from trainlore.placement import choose_device, use_bf16
    from trainlore.store import home

    device = choose_device("auto")
    found = {**environment(), "uses": str(device), "bf16": use_bf16("auto", device), "cache": str(home())}
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for key, value in found.items():
        say(f"{key:14s} {value}")


@app.command()
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
        _complain(str(error))
        raise SystemExit(2) from None
    except typer.Exit as done:
        raise SystemExit(done.exit_code) from None
    except typer.Abort:
        raise SystemExit(130) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        raise SystemExit(0) from None
    except OSError as error:
        if full:
            raise
        if error.errno == errno.ENOSPC:
            _complain(
                f"the disk is full: {error.filename or 'a file'} could not be written; free some room and try again"
            )
        else:
            _complain(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error))
        raise SystemExit(2) from None
    except Exception as error:
        if hasattr(error, "format_message"):  # a mistake in the command itself
            _complain(error.format_message())
            raise SystemExit(getattr(error, "exit_code", 2)) from None
        if full:
            raise
        _complain(
            f"{type(error).__name__}: {error}\n(this looks like a fault of ours or of a method; --traceback shows where)"
        )
        raise SystemExit(1) from None


def _complain(text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), text))
