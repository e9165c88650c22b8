"""The bench's arithmetic, its document and its page; its null medium keeps what is read back."""

from __future__ import annotations

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bench import sets
from bench.__main__ import ROWS, SCENES, parsed
from bench.cost import Cost, run
from bench.joining import joined
from bench.limits import LIMITS
from bench.memory import PeakMemory
from bench.null_medium import NullMedium
from bench.page import render
from bench.pairs import Ratios, ratios, take_turns
from bench.rows import MOST_NOISE, Row, compared, document
from bench.stage import GIB, Needs, Sizes, choose_media

from splitmirror.errors import ConfigError, MediumError, NoRoom, ProgramFailed
from splitmirror.media.labels import TapeFileKind
from splitmirror.media.volume import VolumeReader, open_for_append

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def row(value: float, goal: float, **more: object) -> Row:
    fields = {"name": "a-row", "what": "this against that", "unit": "×", **more}
    return Row(value=value, goal=goal, **fields)  # type: ignore[arg-type]


# --- pairs


def test_the_median_is_of_the_paired_ratios_and_not_the_ratio_of_medians() -> None:
    found = ratios([10, 20, 90], [10, 10, 10])
    assert found.values == (1, 2, 9)
    assert found.median == 2


def test_equals_that_never_differ_have_no_noise() -> None:
    assert Ratios((1.0, 1.0, 1.0)).noise == 0


def test_noise_is_how_far_the_median_of_equals_is_from_one() -> None:
    assert Ratios((1.2, 1.2, 1.2)).noise == pytest.approx(0.2)


def test_noise_is_no_less_than_the_error_of_the_median() -> None:
    lucky = Ratios((0.8, 1.0, 1.2))  # in the middle by chance
    assert lucky.noise == pytest.approx(1.4826 * 1.2533 * 0.2 / 3**0.5)
    more = Ratios((0.8, 1.0, 1.2) * 4)
    assert more.noise < lucky.noise


def test_half_of_the_pairs_lie_in_the_spread() -> None:
    assert Ratios((1.0, 2.0, 3.0, 4.0, 5.0)).spread == (2.0, 4.0)
    assert Ratios((7.0,)).spread == (7.0, 7.0)


def test_no_pairs_are_no_ratio() -> None:
    with pytest.raises(ValueError, match="no ratios"):
        Ratios(())


def test_the_sides_take_turns_in_going_first() -> None:
    order: list[str] = []
    sides = {name: lambda name=name: order.append(name) for name in "ab"}
    take_turns(sides, {"a": 4, "b": 4})
    assert "".join(order) == "abbaabba"


def test_a_side_with_fewer_rounds_leaves_the_others_alone() -> None:
    order: list[str] = []

    def side(name: str) -> str:
        order.append(name)
        return name

    sides = {name: partial(side, name) for name in "abc"}
    found = take_turns(sides, {"a": 3, "b": 3, "c": 1})
    assert "".join(order) == "abcbaab"
    assert [len(found[name]) for name in "abc"] == [3, 3, 1]


# --- rows


def test_a_ratio_is_met_within_the_noise_of_its_run_and_no_further() -> None:
    assert row(0.93, 0.95, allows_noise=True).judged(0.03).met
    assert not row(0.91, 0.95, allows_noise=True).judged(0.03).met
    assert not row(0.93, 0.95, allows_noise=True).met


def test_a_noisy_machine_does_not_let_every_goal_be_met() -> None:
    assert row(0.5, 1, allows_noise=True).judged(0.9).noise == MOST_NOISE
    assert not row(0.5, 1, allows_noise=True).judged(0.9).met


def test_nothing_is_allowed_for_where_speed_does_not_matter() -> None:
    assert row(4.0, 4, at_most=True).judged(0.1).met
    assert not row(4.1, 4, at_most=True).judged(0.1).met


def test_a_comparison_is_of_rates_and_says_the_cpu_time_of_both_sides() -> None:
    ours = [Cost(seconds=2, cpu_s=1, bytes=2 * GIB), Cost(seconds=4, cpu_s=3, bytes=2 * GIB)]
    theirs = [Cost(seconds=4, cpu_s=4, bytes=2 * GIB), Cost(seconds=4, cpu_s=4, bytes=2 * GIB)]
    made = compared("name", "what", ours, theirs, goal=1, unit="×").document()
    assert made["value"] == 1.5
    assert made["pairs"] == 2
    assert made["cpu_s_per_gib"] == {"ours": 1.0, "theirs": 2.0}


def test_the_document_has_the_promised_shape() -> None:
    made = document([row(2, 1), row(3, 1, at_most=True)], 300 * MIB, scale=0.1)
    assert made["peak_rss_mib"] == 300
    assert made["scale"] == 0.1
    for each in made["rows"]:
        assert {"name", "value", "goal", "met", "unit"} <= set(each)
    assert [each["met"] for each in made["rows"]] == [True, False]


def test_no_two_rows_have_one_name_and_each_says_what_limits_it() -> None:
    assert len(set(ROWS)) == len(ROWS)
    assert set(LIMITS) == set(ROWS)


# --- sizes and room


def test_the_whole_scale_is_that_of_the_goals() -> None:
    sizes = Sizes.of(1)
    assert (sizes.large, sizes.mixed_large, sizes.small) == (4 * GIB, 2 * GIB, 100_000)
    assert (sizes.cluster, sizes.one_set) == (4 * GIB, 10 * GIB)
    assert (sizes.counts, sizes.changed) == ((1_000, 10_000, 100_000, 1_000_000), 100)
    assert (sizes.rate_pairs, sizes.pairs) == (15, 5)


def test_a_scale_is_of_sizes_counts_and_pairs() -> None:
    sizes = Sizes.of(0.4)
    assert (sizes.large, sizes.small) == (int(1.6 * GIB), 40_000)
    assert (sizes.rate_pairs, sizes.pairs) == (6, 2)
    assert Sizes.of(0.4, pairs=3).rate_pairs == 3


@pytest.mark.parametrize("text", ["0", "-1", "11"])
def test_a_scale_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(SystemExit):
        parsed(["--scale", text])


def test_what_a_run_needs_grows_with_its_scale() -> None:
    for scene in SCENES:
        small, whole = scene.needs(Sizes.of(0.1)), scene.needs(Sizes.of(1))
        assert small.scratch < whole.scratch
        assert small.seconds < whole.seconds


def test_a_run_without_room_stops_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(NoRoom, match="this run needs"):
        choose_media(tmp_path, tmp_path, Needs(scratch=1 << 60))
    assert list(tmp_path.iterdir()) == []


# --- costs


def test_a_command_costs_the_cpu_time_of_all_of_a_pipe() -> None:
    busy = ["sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo $i"]
    alone = run(busy, moved=1).cpu_s
    piped = run(busy, ["sh", "-c", f"cat >/dev/null; {busy[2]}"], moved=1).cpu_s
    assert alone > 0
    assert piped > 1.3 * alone


def test_a_command_that_fails_is_told_with_its_last_words() -> None:
    with pytest.raises(ProgramFailed, match="exit status 3: not so"):
        run(["sh", "-c", "echo not so >&2; exit 3"])


def test_what_is_piped_into_a_file_is_all_there(tmp_path: Path) -> None:
    run(["seq", "100000"], ["tail", "-n", "1"], into=tmp_path / "last")
    assert (tmp_path / "last").read_text() == "100000\n"


# --- files


def test_the_mixed_set_is_the_same_each_time(tmp_path: Path) -> None:
    made = [sets.make_mixed(tmp_path / str(n), 300, 2 * MIB, MIB) for n in range(2)]
    first, second = (
        {path.relative_to(tmp_path / str(n)): path.read_bytes() for path in found if path.is_file()}
        for n in range(2)
        for found in [sorted((tmp_path / str(n)).rglob("*"))]
    )
    assert first == second
    assert made[0] == sum(map(len, first.values()))
    assert len(first) == 302


def test_tiny_files_have_the_names_that_are_told_of_them(tmp_path: Path) -> None:
    sets.make_tiny(tmp_path, 1200)
    made = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("file*")}
    assert made == set(sets.tiny_names(1200))


def test_as_many_tiny_files_change_as_asked(tmp_path: Path) -> None:
    sets.make_tiny(tmp_path, 1200)
    sets.change_some(tmp_path, 1200, 100)
    assert sum(path.stat().st_size > 4096 for path in tmp_path.rglob("file*")) == 100


# --- the null medium


def test_a_volume_on_the_null_medium_can_be_appended_to_and_walked() -> None:
    medium = NullMedium()
    for number in (1, 2):
        with open_for_append(medium, "SM0001", label_blank="SM0001") as volume:
            volume.begin_file(TapeFileKind.PART, f"set-{number}", 1, 65536)
            volume.write([bytes(65536)] * 3)
            volume.end_file()
            volume.finish_set()
    files = list(VolumeReader(medium).files())
    assert [(file.set_id, file.blocks) for file in files] == [("set-1", 3), ("set-2", 3)]
    assert medium.dropped == 6 * 65536


def test_data_on_the_null_medium_are_not_read_back_as_something_else() -> None:
    medium = NullMedium()
    medium.load(writable=True)
    medium.write([bytes(65536)])
    medium.locate(0)
    with pytest.raises(MediumError, match="dropped"):
        medium.read(memoryview(bytearray(65536)))


# --- the page


def test_the_page_is_what_its_figures_make() -> None:
    figures = json.loads((ROOT / "docs/performance.json").read_text())
    assert (ROOT / "docs/performance.md").read_text() == render(figures)


def test_the_page_says_what_limits_a_row_only_where_it_is_not_met() -> None:
    name = "one-file"
    machine = dict.fromkeys(
        ["when", "splitmirror", "python", "processors", "processor", "memory_gib", "kernel"], "?"
    )
    more = {"scale": 1, "seconds": 60, "media": "here", "machine": machine}
    reached = render(document([row(21, 20, name=name)], None, **more))
    missed = render(document([row(19, 20, name=name)], None, **more))
    assert LIMITS[name] not in reached
    assert LIMITS[name] in missed


def test_a_page_says_which_rows_were_measured_at_a_scale() -> None:
    machine = dict.fromkeys(
        ["when", "splitmirror", "python", "processors", "processor", "memory_gib", "kernel"], "?"
    )
    more = {"scale": 1, "seconds": 60, "media": "here", "machine": machine}
    made = document([row(2, 1, name="whole"), row(3, 1, name="scaled")], None, **more)
    assert "orientation only" not in render(made)
    made["rows"][1]["scale"] = 0.25
    assert "orientation only" in (page := render(made))
    assert "| 3 × (scale 0.25) |" in page
    assert "| 2 × |" in page


def test_the_reference_names_every_row() -> None:
    page = (ROOT / "docs/performance.md").read_text()
    assert set(re.findall(r"^## (\S+)$", page, re.MULTILINE)) >= set(ROWS)


def figures_of(values: dict[str, float], **more: object) -> dict[str, Any]:
    machine = dict.fromkeys(["kernel", "processor", "processors", "python", "splitmirror"], "same")
    facts = {"scale": 1, "seconds": 60, "media": "here", "machine": machine, "noise": 0.0}
    return document([row(of, 1, name=name) for name, of in values.items()], None, **facts | more)


def test_rows_of_two_runs_stand_together_each_as_it_was_measured_last() -> None:
    made = joined(figures_of({"c": 3, "a": 1}), figures_of({"a": 9, "b": 2}), ["a", "b", "c"])
    assert [(each["name"], each["value"]) for each in made["rows"]] == [
        ("a", 1),
        ("b", 2),
        ("c", 3),
    ]
    assert (made["seconds"], made["runs"]) == (120, 2)
    again = joined(figures_of({"b": 4}), made, ["a", "b", "c"])
    assert (again["rows"][1]["value"], again["runs"]) == (4, 3)


def test_rows_of_runs_at_different_scales_say_at_which() -> None:
    half = figures_of({"a": 1, "b": 2}, scale=0.5)
    made = joined(figures_of({"b": 3}), half, ["a", "b"])
    assert [(each["value"], each["scale"]) for each in made["rows"]] == [(1, 0.5), (3, 1)]
    again = joined(figures_of({"c": 4}, scale=0.1), made, ["a", "b", "c"])
    assert [each["scale"] for each in again["rows"]] == [0.5, 1, 0.1]


def test_rows_that_were_measured_otherwise_do_not_stand_together() -> None:
    with pytest.raises(ConfigError, match="media"):
        joined(figures_of({"a": 1}), figures_of({"b": 1}, media="elsewhere"), ["a", "b"])


def test_rows_are_only_added_to_a_file() -> None:
    assert parsed(["--add", "--save", "figures.json"]).add
    with pytest.raises(SystemExit):
        parsed(["--add"])


def test_only_known_rows_can_be_asked_for() -> None:
    assert parsed(["--only", ROWS[0]]).only == [ROWS[0]]
    with pytest.raises((SystemExit, argparse.ArgumentError)):
        parsed(["--only", "no-such-row"])


def test_memory_is_that_of_a_process_and_those_below_it_shared_pages_once() -> None:
    held = "held = bytearray(64 << 20); import os, time"
    both = f"{held}; os.fork(); held and time.sleep(0.6)"  # the second shares what the first has
    with PeakMemory() as memory:
        run([sys.executable, "-c", both], started=memory.started)
    assert 64 * MIB < memory.peak < 120 * MIB
    with PeakMemory() as memory:
        run(
            [sys.executable, "-c", f"import os, time; os.fork(); {held}; time.sleep(0.6)"],
            started=memory.started,
        )
    assert memory.peak > 128 * MIB
