"""Racing methods on one's own data: `race`. Loads torch only when a race is run."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from trainlore import console
from trainlore.cli.options import Quiet
from trainlore.cli.shipped import standing
from trainlore.console import esc, say
from trainlore.errors import Bad


def race(
    races: Annotated[
        str | None, typer.Argument(help="A race file, or the name of a standing race.", metavar="[RACE]")
    ] = None,
    arms: Annotated[str | None, typer.Option(help="Methods to race, with commas: dsir,color_filter,vote_k.")] = None,
    family: Annotated[
        str | None, typer.Option(help="Race every method of a family that can run here: data/select.")
    ] = None,
    race_file: Annotated[str | None, typer.Option("--race", help="A race file: arms that are whole recipes.")] = None,
    data: Annotated[str | None, typer.Option(help="The rows: a file, folder, world:NAME/PART or hub:ID.")] = None,
    target: Annotated[str | None, typer.Option(help="Rows of the kind that is wanted.")] = None,
    test: Annotated[
        str | None, typer.Option(help="Rows the verdict is spoken on (default: a part nothing else sees).")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A preset (fresh for each seed), a Hugging Face folder or id.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="The same for every arm: 2M-tokens, 500-steps, 10T-work, 60-seconds.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="A measure: loss, accuracy, perplexity, ...")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds for each arm (default: 5).")] = None,
    tune: Annotated[int, typer.Option(min=0, help="Trials for each arm over its declared ranges, charged to it.")] = 0,
    halving: Annotated[
        bool, typer.Option("--halving", help="Drop losing arms early; the report states the risk.")
    ] = False,
    given: Annotated[
        list[str] | None, typer.Option(help="A noun that fields of its name take: teacher=path/to/model.")
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="A field of an arm: dsir.min_words=30; of a race file: seeds=3.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The race folder (default: runs/race-NAME-TIME).")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Heats at a time (default: one a core).")] = 0,
    on: Annotated[str, typer.Option(help="Where heats run: local or ray.")] = "local",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask after the pilot.")] = False,
    exploratory: Annotated[
        bool, typer.Option("--exploratory", help="Allow one seed; then no verdict is spoken.")
    ] = False,
    allow_overlap: Annotated[
        bool, typer.Option("--allow-overlap", help="Allow test rows that are trained on.")
    ] = False,
    publish: Annotated[bool, typer.Option("--publish", help="Append the result to results/races/.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Print the race as a file and stop.")] = False,
    force: Annotated[bool, typer.Option(help="Replace the race folder if it exists.")] = False,
    quiet: Quiet = False,
) -> None:
    """Race methods on your data: equal budgets, several seeds, and an honest verdict ("cannot separate" included).

    trainlore race --arms dsir,kmeans_quality --data pool.jsonl --target dev.jsonl --budget 200k-tokens
    """
    from trainlore.folders import slug
    from trainlore.races import entry, published, spec

    file = race_file or races
    if file is not None:
        if arms or family or data:
            raise Bad("a race file names its arms and data itself: leave --arms, --family and --data out")
        overrides = list(sets or [])
        overrides += [f"seeds={seeds}"] if seeds else []
        overrides += [f"budget={budget}"] if budget else []
        made = spec.read(standing(file), overrides)
    else:
        if data is None:
            raise Bad("say --data, the rows that are trained on, and --arms or --family; or name a race file")
        names = [a for a in (arms or "").split(",") if a.strip()]
        extra = dict(_pair(g, "--given") for g in given or [])
        how = {"target": target, "test": test, "model": model, "metric": metric, "family": family}
        raw, left = entry.make(
            names, data, seeds=seeds or 5, budget=budget or "300-steps", given=extra, fields=_fields(sets or []), **how
        )
        for name, why in left.items():
            say(f"[yellow]{name} does not race: {why}[/yellow]")
        made = spec.read(raw)
    if show:
        sys.stdout.write(made.text)
        return
    folder = out or Path("runs") / f"race-{slug(made.spec.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    from trainlore.races.conduct import How

    options = How(jobs, on, tune, halving, exploratory, allow_overlap)
    record = run(folder, made, options, yes, quiet, force=force)
    if publish:
        say(f"appended to {published.append(record, folder)}")


def run(folder: Path, made: Any, options: Any, yes: bool, quiet: bool, **how: Any) -> dict[str, Any]:
    """Run (or with made None resume) a race with bars and a question, and print its verdict."""
    from trainlore.progress import bars
    from trainlore.races import conduct

    with bars(not quiet and sys.stderr.isatty()) as shown:
        tell = console.teller(shown)

        def ask(text: str) -> bool:
            tell(esc(text))
            if yes or not sys.stdin.isatty():
                return True
            if shown:
                shown.stop()
            try:
                return typer.confirm("go on?", default=True)
            finally:
                if shown:
                    shown.start()

        try:
            if made is None:
                record = conduct.resume(folder, ask=ask, tell=tell, bars=shown)
            else:
                record = conduct.conduct(made, folder, options, ask=ask, tell=tell, bars=shown, **how)
        except KeyboardInterrupt:
            tell(f"[yellow]stopped[/yellow]; go on with: trainlore resume {esc(folder)}")
            raise SystemExit(130) from None
    told(record, folder)
    return record


def told(record: dict[str, Any], folder: Path) -> None:
    """The table of a race and its verdict."""
    from trainlore.page.pieces import big, number

    effects = {e["arm"]: e for e in record["effects"]}
    colour = {"better": "green", "worse": "red"}
    rows = []
    for name, a in record["arms"].items():
        e, scores = effects.get(name), list(a["scores"].values())
        said = "baseline" if name == record["baseline"] else "" if e is None else e["verdict"]
        said = f"dropped at {a['dropped']['rung']:.0%}" if a.get("dropped") else said or ("lost" if a["lost"] else "")
        rows.append(
            [
                esc(name),
                number(sum(scores) / len(scores)) if scores else "–",
                f"{e['difference']:+.3g} [{e['interval'][0]:.3g}, {e['interval'][1]:.3g}]" if e else "",
                number(e["holm"]) if e else "",
                f"[{colour[said]}]{said}[/]" if said in colour else said,
                number(a["bill"]["steps"]),
                big(a["bill"]["work"]),
                f"{a['bill']['seconds']:.1f}",
            ]
        )
    titles = ["arm", record["metric"], "advantage [95 %]", "p", "verdict", "steps", "work", "s"]
    sides = ["left", *["right"] * 3, "left", *["right"] * 3]
    out = console.table(zip(titles, sides, strict=True), rows, 140)
    out.print(f"\n[bold]{esc(record['verdict'])}[/bold]", soft_wrap=True, highlight=False)
    out.print(f"report: [bold]{esc(folder / 'report.html')}[/bold]", highlight=False, soft_wrap=True)


def _pair(text: str, option: str) -> tuple[str, Any]:
    import yaml

    name, mark, value = text.partition("=")
    if not mark or not name:
        raise Bad(f"{option} {text}: say {option} name=VALUE")
    return name.strip(), yaml.safe_load(value)


def _fields(sets: list[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for item in sets:
        name, value = _pair(item, "--set")
        method, mark, field = name.partition(".")
        if not mark:
            raise Bad(f"--set {item}: say METHOD.FIELD=VALUE")
        found.setdefault(method, {})[field] = value
    return found
