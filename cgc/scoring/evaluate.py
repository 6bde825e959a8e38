"""`cgc eval`: get the id maps of runs (or masks from a folder), score them against truth, print and write the numbers.

Every number of a summary.json can be made again from the views.csv beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cgc.errors import InputError
from cgc.pipeline.workspace import Workspace
from cgc.run_folder import open_run
from cgc.scoring.benchmarks import READERS, report_benchmark
from cgc.scoring.cases import find_case
from cgc.scoring.instances import report_instances, report_prompts
from cgc.scoring.pictures import report_pictures
from cgc.scoring.report import Report, write
from cgc.scoring.runs import ScoredRun
from cgc.settings import EvalSettings


def evaluate(runs: Sequence[Path], settings: EvalSettings, *, quiet: bool = False, device: str = "auto") -> list[Path]:
    """Score runs, or the masks of `settings.predictions`; print the numbers, return the summaries that were written.

    Everything is scored before anything is written.
    """
    if not runs and settings.predictions is None:
        raise InputError("there is nothing to score: name a run folder, or a folder of masks with --predictions DIR")
    if settings.predictions is not None and not settings.predictions.is_dir():
        if settings.predictions.exists():
            raise InputError(f"{settings.predictions} is a file where a folder of masks or id maps was expected")
        raise InputError(
            f"the predictions {settings.predictions} do not exist; expected a folder of masks or id maps (PNG)"
        )
    opened = [ScoredRun(Workspace(open_run(root), quiet=quiet, device=device)) for root in runs]
    out = settings.out or (opened[0].root / "eval" if len(opened) == 1 else None)
    if out is None:
        raise InputError("there is no one run to write the results into; say where with --out DIR")
    if settings.protocol in READERS:
        reports = [report_benchmark(opened, settings)]
    elif len(opened) > 1:
        raise InputError(f"{settings.protocol} scores one run at a time, got {len(opened)}; name one")
    else:
        reports = _own(opened[0] if opened else None, settings)
    said: set[str] = set()
    return [write(report, out / report.protocol, said, quiet=quiet) for report in reports]


def _own(run: ScoredRun | None, settings: EvalSettings) -> list[Report]:
    """Score instances, prompts and pictures, as asked and as far as there is truth."""
    auto = settings.protocol == "auto"
    for name in ("selection", "select", "write_selection"):
        if getattr(settings, name) is not None:
            raise InputError(
                f"--{name.replace('_', '-')} is for the benchmarks that have prompts ({', '.join(READERS)}); "
                "name one with --protocol"
            )
    own = run if settings.predictions is None else None
    case = find_case(run, settings)
    if case is None and not (auto and own):
        raise InputError(
            "there is no instance truth: the scene has no instances.json with instance/; give a folder with --truth DIR"
        )
    reports = []
    if case and settings.protocol in ("auto", "instances"):
        reports.append(report_instances(own, case))
    if case and settings.protocol in ("auto", "prompts"):
        try:
            reports.append(report_prompts(case))
        except InputError as error:
            if not auto:
                raise
            reports[0].notes.append(f"prompts are not scored: {error}")
    if auto and own:
        reports.append(report_pictures(own))
        if case is None:
            reports[0].notes.append("the scene has no instance truth, so pictures alone are scored; give --truth DIR")
    return reports
