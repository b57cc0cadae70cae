"""``cpulm analyze``: how a run went, why, and which of several runs is the best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cpulm.cli import completion
from cpulm.cli.setting_flags import COMMON, OUTPUT, JsonResult

if TYPE_CHECKING:
    from cpulm.analysis.compare import By, RunComparison
    from cpulm.analysis.report import Report
    from cpulm.inspection.model_report import ModelReport
    from cpulm.ui.analysis_curves import Series

MODEL = "The model itself"
_BY: tuple[By, ...] = ("steps", "tokens", "time", "flops")


def analyze(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            autocompletion=completion.run_or_folder,
            help="A run's folder, several of them, or a folder of runs.",
            show_default=False,
        ),
    ],
    by: Annotated[
        str | None,
        typer.Option(
            metavar="AXIS",
            help="Draw the curves of several runs over steps, tokens, time or flops. [default: steps]",
            rich_help_panel=COMMON,
            autocompletion=completion.axis,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a page for the browser, in one file.", rich_help_panel=OUTPUT
        ),
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write the pictures as PNG files.", rich_help_panel=OUTPUT),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the result as a picture to post, and print it as text.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    model: Annotated[
        bool,
        typer.Option(
            "--model",
            help="Inspect the model too: its loss by position and kind of token, the loss along a passage, "
            "attention, embeddings, weights. Then RUN may be a checkpoint, "
            "a folder of transformers or a GGUF file.",
            rich_help_panel=MODEL,
        ),
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Text to inspect it on (- for stdin). [default: the run's validation split]",
            rich_help_panel=MODEL,
            autocompletion=completion.paths,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Show attention and the next token for this text. [default: a part of the text]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    word: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKEN",
            help="Show the nearest embeddings of this token; repeatable. [default: frequent words]",
            rich_help_panel=MODEL,
        ),
    ] = None,
    json: JsonResult = False,
) -> None:
    """Analyze a run: how it went, what happened, what to do next. Or compare several, best first.

    It reads only the run's log, so it works while the run trains, after a crash, and without the model.
    Several runs are compared by bits per byte, which does not depend on the tokenizer.

    **Examples**

        cpulm analyze runs/tiny-1

        cpulm analyze runs/tiny-1 --html report.html --png pictures

        cpulm analyze runs/tiny-1 --card card.png

        cpulm analyze runs/tiny-1 runs/tiny-2 --by time

        cpulm analyze runs/tiny-1 --model --prompt "def main("

        cpulm analyze runs --json | jq -r '.rows[0].name'
    """
    from cpulm.cli.inspection import look, require_model, require_one
    from cpulm.errors import SettingsError
    from cpulm.pretrained.recognize import is_pretrained
    from cpulm.ui.console import show_warning

    require_model(model=model, text=data, prompt=prompt, words=word)
    axis = next((one for one in _BY if one == ("steps" if by is None else by)), None)
    if axis is None:
        raise SettingsError(f"--by {by} is not an axis", f"give one of {', '.join(_BY)}")
    pages = html is not None or png is not None
    if card is not None:
        if pages or model or json:
            raise SettingsError("--card writes a card alone", "leave out --html, --png, --model and --json")
        if card.suffix.lower() != ".png":
            raise SettingsError(f"--card {card}: a card is a PNG picture", f"such as --card {card.stem}.png")
        _write_card(runs, card)
        return
    of_checkpoint = model and len(runs) == 1 and (runs[0].suffix == ".pt" or is_pretrained(runs[0]))
    reports = [] if of_checkpoint else read_all(runs)
    if by is not None and (len(reports) <= 1 or json or pages):
        show_warning("--by has no effect: it is for the curves of several runs in the terminal")
    found = None
    if model:
        require_one(runs, reports, pages=pages)
        found = look(reports[0].path if reports else runs[0], data, prompt, word, quiet=json)
    if pages:
        _write(reports, html, png, found, quiet=json)
        if not json:
            return
    if len(reports) <= 1:
        _show_run(reports[0] if reports else None, found, json=json)
    else:
        _show_comparison(reports, axis, json=json)


def _write_card(runs: list[Path], path: Path) -> None:
    """Write the card of one run as a picture, and print it."""
    from cpulm.analysis.card import card_of
    from cpulm.errors import SettingsError
    from cpulm.ui.console import write_text
    from cpulm.ui.page.card_picture import write_card

    reports = read_all(runs)
    if len(reports) > 1:
        raise SettingsError("a card is of one run", "give one run's folder")
    card = card_of(reports[0])
    write_card(path, card)
    write_text(card.text())


def read_all(paths: list[Path]) -> list[Report]:
    """The reports of the runs named, and of those in the folders named.

    Raises:
        DataError: if a named path is not a run, or a folder holds no run that has begun.
    """
    from cpulm.analysis.build_report import read_report
    from cpulm.errors import DataError
    from cpulm.run_dir import RunDir
    from cpulm.runs.status import find_runs, is_run
    from cpulm.ui.console import show_warning

    reports: dict[Path, Report] = {}
    for path in paths:
        if not path.is_dir() or is_run(RunDir(path)):
            reports.setdefault(path.resolve(), read_report(path))
            continue
        inside = find_runs([path])
        if not inside:
            raise DataError(
                f"{path} is not a run and contains none", "give a run's folder, such as runs/tiny-1"
            )
        for run in inside:
            try:
                reports.setdefault(run.path.resolve(), read_report(run.path))
            except DataError as error:
                show_warning(f"left out: {error.message}")
    if not reports:
        raise DataError(f"no run in {', '.join(map(str, paths))} has begun", "see `cpulm runs`")
    return list(reports.values())


def _write(
    reports: list[Report], html: Path | None, png: Path | None, found: ModelReport | None, *, quiet: bool
) -> None:
    """Write the page and the pictures; unless ``quiet`` their paths go to stdout, one a line."""
    from cpulm.analysis.compare import compare
    from cpulm.ui.console import write_text
    from cpulm.ui.page.page import write_page
    from cpulm.ui.page.pictures import write_pictures

    comparison = compare(reports) if len(reports) > 1 else None
    look = None if found is None else found.to_json()
    written = []
    if html is not None:
        write_page(html, reports, look=look, comparison=comparison)
        written.append(html)
    if png is not None:
        written += write_pictures(png, reports if comparison is None else comparison.reports, look)
    if not quiet:
        write_text("".join(f"{path}\n" for path in written))


def _show_run(report: Report | None, found: ModelReport | None, *, json: bool) -> None:
    """The report, the inspected model, or both; in JSON the model is under ``model``."""
    from cpulm.ui.analysis import drawing_width, glyphs_here, report_screen
    from cpulm.ui.console import print_json, stdout

    if json:
        from cpulm.analysis.as_json import report_as_json

        record = {} if report is None else report_as_json(report)
        print_json(record if found is None else {**record, "model": found.to_json()})
        return
    console = stdout()
    width, glyphs = drawing_width(console), glyphs_here()
    if report is not None:
        console.print(report_screen(report, width, glyphs))
    if found is not None:
        from cpulm.ui.inspection import inspection_screen

        if report is not None:
            console.print()
        console.print(inspection_screen(found, width, glyphs))


def _show_comparison(reports: list[Report], by: By, *, json: bool) -> None:
    from cpulm.analysis.compare import compare
    from cpulm.ui.analysis import drawing_width, glyphs_here
    from cpulm.ui.analysis_compare import comparison_screen
    from cpulm.ui.console import print_json, stdout

    comparison = compare(reports)
    if json:
        from cpulm.analysis.as_json import comparison_as_json

        print_json(comparison_as_json(comparison))
        return
    console = stdout()
    console.print(
        comparison_screen(
            comparison,
            _series(comparison, by),
            by,
            drawing_width(console),
            glyphs_here(),
            colour=console.color_system is not None and not console.no_color,
        )
    )


def _series(comparison: RunComparison, by: By) -> list[Series | None]:
    """For each run its curve, in the order of the table."""
    from cpulm.analysis.compare import x_values
    from cpulm.ui.analysis_curves import Series

    series: list[Series | None] = []
    for number, report in enumerate(comparison.reports):
        curve = comparison.curve(report)
        x = None if curve is None else x_values(report, curve, by)
        series.append(None if curve is None or x is None else Series(number, x, curve.values))
    return series
