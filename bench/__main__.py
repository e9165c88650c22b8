"""`python -m bench`: measure the rows, say what came of them, end with one line of JSON."""

from __future__ import annotations

import argparse
import json
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from bench.filesets import NOISE, FileSet
from bench.joining import joined
from bench.onefile import OneFile
from bench.pause import Pause
from bench.postgres import Database
from bench.rows import Row, document
from bench.stage import Needs, Scene, Sizes, Stage, choose_media
from splitmirror import __version__
from splitmirror.cli.output import print_error
from splitmirror.errors import SplitmirrorError
from splitmirror.preflight import require_root
from splitmirror.units import show_seconds, show_size

SCENES: tuple[Scene, ...] = (
    FileSet("large"),
    FileSet("mixed"),
    Database(),
    Pause(),
    OneFile(),
)
ROWS = tuple(name for scene in SCENES for name in scene.rows)
_INTERRUPTED = 130


def parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with the figures as one line")
    parser.add_argument("--scale", type=_positive, default=1.0, help="of sizes, counts and pairs")
    parser.add_argument("--pairs", type=int, help="for every row, instead of what the scale says")
    parser.add_argument("--only", action="append", choices=ROWS, help="a row; may be repeated")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"), help="on the disk")
    parser.add_argument("--media", type=Path, help="where copies go; else memory if it has room")
    parser.add_argument("--profile", action="store_true", help="and where the time goes")
    parser.add_argument("--save", type=Path, help="write the figures to this file too")
    parser.add_argument("--add", action="store_true", help="keep the file's other rows")
    options = parser.parse_args(words)
    if options.add and not options.save:
        parser.error("--add keeps the other rows of a file: name it with --save")
    return options


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value <= 10:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 10")
    return value


def measure(options: argparse.Namespace) -> str:
    """The whole run; gives its one line of JSON. Raises SplitmirrorError."""
    require_root()
    began_s = time.monotonic()
    before = json.loads(options.save.read_text()) if options.add else None
    sizes = Sizes.of(options.scale, options.pairs)
    wanted = frozenset(options.only or ROWS)
    peaks: list[int] = []
    with staged(options, sizes, wanted, peaks) as stage:
        rows = list(_measured(stage, wanted))
        media_is = stage.media_is
    known = before["noise"] if before else 0.0
    noise = next((row.value for row in rows if row.name == NOISE), known)
    judged = [row.judged(noise) for row in rows]
    _say(judged, sizes)
    found = document(
        judged,
        _peak(judged, peaks),
        scale=sizes.scale,
        noise=noise,
        media=media_is,
        seconds=round(time.monotonic() - began_s),
        machine=machine(),
    )
    return json.dumps(joined(found, before, ROWS) if before else found)


@contextmanager
def staged(
    options: argparse.Namespace, sizes: Sizes, wanted: frozenset[str], peaks: list[int]
) -> Iterator[Stage]:
    """What a run needs, said before anything is made; all of it is gone afterwards."""
    began_s = time.monotonic()
    needs = _needs(sizes, wanted)
    media, media_is = choose_media(options.directory, options.media, needs)
    print(
        f"bench: {len(wanted)} of {len(ROWS)} rows at scale {sizes.scale:g}, about "
        f"{show_seconds(needs.seconds)}; {show_size(needs.scratch)} in {options.directory}, "
        f"{show_size(needs.media)} in {media}: copies go to a place {media_is}",
        flush=True,
    )
    with (
        tempfile.TemporaryDirectory(dir=options.directory, prefix="splitmirror-bench-") as scratch,
        tempfile.TemporaryDirectory(dir=media, prefix="splitmirror-bench-") as copies,
    ):
        for place in (Path(scratch), Path(copies)):
            place.chmod(0o711)  # the database's user goes through it
        yield Stage(
            sizes=sizes,
            scratch=Path(scratch),
            media=Path(copies),
            media_is=media_is,
            profile=options.profile,
            tell=lambda line: print(f"{time.monotonic() - began_s:5.0f} s  {line}", flush=True),
            peaks=peaks,
        )


def _needs(sizes: Sizes, wanted: frozenset[str]) -> Needs:
    """Of the scenes that are played, one after another."""
    played = [scene.needs(sizes) for scene in SCENES if wanted & set(scene.rows)]
    return Needs(
        scratch=max(needs.scratch for needs in played),
        media=max(needs.media for needs in played),
        seconds=sum(needs.seconds for needs in played),
    )


def _measured(stage: Stage, wanted: frozenset[str]) -> Iterator[Row]:
    for scene in SCENES:
        if wanted & set(scene.rows):
            for row in scene.run(stage, wanted):
                stage.tell(f"{row.name}: {row.value:.3f} {row.unit}")
                yield row


def _say(rows: Sequence[Row], sizes: Sizes) -> None:
    print("\nbench: the result")
    for row in rows:
        print(f"  {row.line()}")
    if sizes.scale != 1:
        print(f"bench: at scale {sizes.scale:g} these figures are orientation only")


def _peak(rows: Sequence[Row], peaks: Sequence[int]) -> int | None:
    """Of the run with the most files; else of whatever backup there was."""
    measured = [int(row.value * (1 << 20)) for row in rows if row.name == Pause.PEAK]
    return max(measured or peaks, default=None)


def machine() -> dict[str, Any]:
    """What the figures are of."""
    memory = next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines())
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d"),
        "splitmirror": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processors": len(_processors()),
        "processor": _processors()[0],
        "memory_gib": round(int(memory) / (1 << 20), 1),
    }


def _processors() -> list[str]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return [line.partition(":")[2].strip() for line in lines if line.startswith("model name")] or [
        platform.machine()
    ]


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    options = parsed(sys.argv[1:])
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        line = measure(options)
    except SplitmirrorError as error:
        print_error(error, as_json=options.json)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("\nbench: interrupted; what it made is gone", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    if options.save:
        options.save.write_text(line + "\n")
    if options.json:
        print(line)


if __name__ == "__main__":
    main()
