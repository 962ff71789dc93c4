"""Exporting a study's model or a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoembed.cli.options import Data, Which, app, opening
from autoembed.errors import StudyError
from autoembed.writing import scratch

if TYPE_CHECKING:
    from autoembed.bundle import Bundle
    from autoembed.study.show.progress import Bar


@app.command()
@opening
def export(
    run: Annotated[Path, typer.Argument(help="A study's folder, such as runs/quickstart, or a bundle.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; of several formats, one for each in it.")],
    trial: Which = None,
    pick: Annotated[
        str | None,
        typer.Option(help="From the Pareto front: knee, 'smallest-within 0.001' (of the best metric), or an id."),
    ] = None,
    data: Data = None,
    format: Annotated[
        str,
        typer.Option(
            help="bundle, onnx, torch, aoti, numpy, tables, fuxictr or torchrec; several with commas, or all."
        ),
    ] = "bundle",
) -> None:
    """Write the best architecture, its weights and vocabulary as a bundle that predicts, or in other formats."""
    from autoembed.bundle import copy_bundle, load_bundle
    from autoembed.export.several import formats_of
    from autoembed.study.show.progress import Bar
    from autoembed.study.show.tables import stdout
    from autoembed.study.study import Study

    is_bundle = (run / "manifest.json").is_file()
    if is_bundle and (trial or pick):
        raise StudyError(f"--trial and --pick choose from a study, but {run} is a bundle")
    format = format.strip()
    names = formats_of(format)  # before the study's data are read

    def from_study(place: Path, bar: Bar) -> Bundle:
        return Study.open(run, data=data, shown=bar).export(place, trial, pick=pick)

    with Bar() as bar, scratch() as temporary:
        if format == "bundle":
            bundle = load_bundle(copy_bundle(run, out)) if is_bundle else from_study(out, bar)
            lines = [f"bundle of {bundle.manifest.provenance.get('trial') or run} written to {bundle.path}"]
        else:
            bundle = load_bundle(run) if is_bundle else from_study(temporary / "bundle", bar)
            lines = _exported(bundle, out, names, bar, several="," in format)
    for line in lines:
        stdout().print(line, soft_wrap=True, markup=False)


def _exported(bundle: Bundle, out: Path, names: tuple[str, ...] | None, bar: Bar, *, several: bool) -> list[str]:
    """Writes one format to `out`, or several into it; the lines that say so."""
    from autoembed.export.formats import export_bundle
    from autoembed.export.several import Exports, export_several

    if names is None or several:
        exports = export_several(bundle, out, names, bar.step)
    else:
        bar.step(f"export to {names[0]}", 0, 1)
        exports = Exports(made=(export_bundle(bundle, out, names[0]),), skipped={})
        bar.step(f"export to {names[0]}", 1, 1)
    written = [
        f"{made.format}{'' if made.format == 'bundle' else ' model'} written to {made.path} ({made.bytes:,} bytes)"
        for made in exports.made
    ]
    return [*written, *(f"{name} skipped: {why}" for name, why in exports.skipped.items())]
