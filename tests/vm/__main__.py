"""`scripts/test-vm`: boots stock kernels and runs the tests on each.

Ends with 0 when every row passed, 1 when tests failed, 2 when a guest crashed or did not start, 3
when one ran out of time, and 125 with one line when something on this machine is missing. What was
built stays in the cache; a run that was interrupted is continued by the next.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from netns_runtime.errors import StepError
from tests.vm import cache, ending, guest, image, job, kernels, report, suite, tools, userland
from tests.vm.archive import Archive, open_archive

if TYPE_CHECKING:
    from collections.abc import Sequence
    from xml.etree.ElementTree import Element

CHECKOUT: Final = Path(__file__).resolve().parents[2]
_EPILOG: Final = "\n".join(
    (
        "KERNEL is a version prefix, or `newest`, and a flavour: 6.1, 6.12-cloud, 7.",
        f"without any: {' '.join(kernels.DEFAULT)}",
        f"fallbacks: {' '.join(suite.LACKS)}",
        f"cache: $XDG_CACHE_HOME/{cache.NAME} or {cache.SYSTEM}/{cache.NAME}",
    )
)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every row of this run shares."""

    place: Path
    archive: Archive
    kernels: list[kernels.Kernel]
    project: Path
    names: list[str]
    options: argparse.Namespace


Finished: TypeAlias = tuple[report.Done, "list[Element]"]


def say(text: str) -> None:
    ending.say("test-vm", text)


def positive(text: str) -> int:
    """A number of things there must be one of. Raises ValueError."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = ending.Parser(
        prog="scripts/test-vm",
        usage="scripts/test-vm [OPTIONS...] [KERNEL...]",
        description="Runs tests/kernel and a smoke part of tests/e2e on stock kernels in QEMU.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kernels", nargs="*", metavar="KERNEL")
    parser.add_argument("--list", action="store_true", help="print what the archive offers")
    parser.add_argument(
        "--fallback",
        action="append",
        default=[],
        metavar="NAME",
        help="a row of the first kernel without NAME, or all; repeatable",
    )
    parser.add_argument(
        "--userland",
        choices=("bookworm", "trixie"),
        help="Debian release of the root file system; default: the kernel's own",
    )
    parser.add_argument("--commit", metavar="C", help="test this commit, not the working tree")
    parser.add_argument(
        "--project",
        type=Path,
        default=CHECKOUT,
        metavar="DIR",
        help="test this tree, not this checkout",
    )
    parser.add_argument("--seconds", type=float, default=1800, help="limit for one guest")
    parser.add_argument("--cores", type=positive, default=2, help="of each guest")
    parser.add_argument(
        "--guests",
        type=positive,
        metavar="N",
        help="guests that share the tests of a row, side by side; default: one for each core here",
    )
    parser.add_argument("--no-smoke", action="store_true", help="tests/kernel alone")
    parser.add_argument(
        "--tests",
        action="append",
        default=[],
        metavar="PATH",
        help="these tests instead; repeatable",
    )
    parser.add_argument("--junit", type=Path, metavar="FILE", help="also write JUnit XML there")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="put the rows into the table of FILE, between its matrix markers",
    )
    return parser.parse_args(arguments)


def rows_of(options: argparse.Namespace) -> list[suite.Row]:
    """Plain rows for every kernel named, then the fallbacks on the first one."""
    names = options.kernels or ([] if options.fallback else list(kernels.DEFAULT))
    rows = [suite.Row(name) for name in names]
    if "all" in options.fallback:
        lacks = list(suite.LACKS.values())
    else:
        lacks = [suite.lack_of(name) for name in options.fallback]
    if lacks and options.kernels:
        rows = []
    for name in options.kernels or kernels.QUICK:
        rows += [suite.Row(name, lack) for lack in lacks]
    return rows


def open_bench(options: argparse.Namespace) -> Bench:
    place = cache.open_cache()
    with cache.only_one(place):
        archive = open_archive(place)
        offered = kernels.offered(archive.names("linux-"))
        if options.list:
            return Bench(place, archive, offered, options.project, [], options)
        for name in options.kernels:
            kernels.choose(name, offered)
        tools.require(tools.FOR_GUESTS)
        tools.quicken_qemu(archive)
        project = options.project
        if options.commit:
            project = place / "commits" / cache.key_of(options.commit)
            job.export(options.project, options.commit, project)
    is_checkout = (project / ".git").exists()
    names = job.files_of(project) if is_checkout else job.tree_names(project)
    return Bench(place, archive, offered, project, names, options)


def run_row(bench: Bench, row: suite.Row) -> Finished:
    with cache.only_one(bench.place, "guest", _wait_for_another):
        return _run_row(bench, row)


def _wait_for_another() -> None:
    say("waiting for the guest of another scripts/test-vm")


def _run_row(bench: Bench, row: suite.Row) -> Finished:
    options = bench.options
    kernel = kernels.choose(row.kernel, bench.kernels)
    extra = row.lack.packages if row.lack else ()
    chosen = userland.Userland(options.userland or kernel.userland, extra)
    say(f"{row.name}: {kernel.release} on {chosen.release}")
    with cache.only_one(bench.place):
        boot = image.build_boot(bench.place, bench.archive, kernel)
        root = userland.build_userland(bench.place, bench.archive, bench.project, chosen)
    machine = guest.Machine(
        boot,
        root,
        row.lack.command_line if row.lack else "",
        cores=options.cores,
        seconds=options.seconds,
        kvm=tools.has_kvm(),
    )
    places = _prepare(bench, row)
    outcomes = guest.run_guests([(machine, place) for place in places], _tell)
    for outcome, place in zip(outcomes, places, strict=True):
        guest.unpack_result(place)
        if outcome.kind != "ended":
            said = f"{row.name}: {outcome.kind}: {outcome.why}"
            say(f"{said}; last lines of {place / 'console.log'}:\n{outcome.tail}")
    suites = [suite for place in places for suite in report.suites_of(place)]
    facts = report.read_facts(places[0])
    counts = report.counts_of(suites)
    worst = report.worst(outcomes)
    return report.Done(row, kernel.release, chosen.release, worst, facts, counts), suites


def _prepare(bench: Bench, row: suite.Row) -> list[Path]:
    """A directory for each guest of the row, with its job."""
    options = bench.options
    tests = options.tests or suite.selection_of(row, smoke=not options.no_smoke)
    guests = options.guests or suite.guests_for(tests, os.cpu_count() or 1)
    top = bench.place / "runs" / row.name.replace(" ", "-")
    cache.remove(top)
    places = [top / f"guest-{number}" for number in range(1, guests + 1)]
    settings = row.lack.settings if row.lack else {}
    for number, place in enumerate(places, 1):
        place.mkdir(parents=True)
        share = f"{number}/{guests}" if guests > 1 else ""
        command = suite.command_of(row, tests, kvm=tools.has_kvm(), share=share)
        job.write_job(place / "job.tar", bench.project, bench.names, job.Job(command, settings))
    cache.require_space(top, 2048 * guests, "the guests' changes")
    return places


def _tell(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def run_rows(bench: Bench, rows: Sequence[suite.Row]) -> list[report.Done]:
    """Every row, whatever becomes of the others."""
    if not tools.has_kvm():
        say("no KVM here: the processor is emulated, claims about time are left out")
    finished: list[Finished] = []
    for row in rows:
        finished.append(run_row(bench, row))
        write_reports(bench, finished)
    return [done for done, _ in finished]


def write_reports(bench: Bench, finished: Sequence[Finished]) -> None:
    """After every row, so that an interrupted run has told what it knew."""
    target = bench.options.junit or bench.place / "runs" / "junit.xml"
    text = report.junit(finished)
    target.write_text(text, encoding="utf-8")
    if bench.options.table:
        page = bench.options.table.read_text(encoding="utf-8")
        filled = fill(page, [done for done, _ in finished])
        bench.options.table.write_text(filled, encoding="utf-8")


def fill(page: str, rows: Sequence[report.Done]) -> str:
    """The page with these rows in its table, between `<!-- matrix -->` and `<!-- /matrix -->`."""
    pattern = re.compile(r"(<!-- matrix -->\n)(.*?)(<!-- /matrix -->)", re.DOTALL)
    if not pattern.search(page):
        raise StepError("--table: the file has no matrix markers", remedy="add them")
    return pattern.sub(lambda found: f"{found[1]}{report.table(rows, found[2])}{found[3]}", page)


def _run(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    rows = rows_of(options)
    bench = open_bench(options)
    if options.list:
        for name in kernels.series(bench.kernels):
            _tell(f"{name:12} {kernels.choose(name, bench.kernels).release}\n")
        return 0
    finished = run_rows(bench, rows)
    _tell("\n" + report.table(finished))
    return report.status_of(finished)


def main(arguments: Sequence[str]) -> int:
    return ending.ended("test-vm", lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
