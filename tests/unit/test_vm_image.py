"""The guest's image: another key whenever anything differs that decides what it holds; whole or
not there."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import replace
from pathlib import Path

import pytest
from tests.vm import image, recipe

from splitmirror.system import programs

INPUTS = recipe.Inputs(requirements=("a>=1", "b"), pins=("a==1.2",), python="/usr/bin/python3")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "cache"
    monkeypatch.setenv(image.CACHE_VARIABLE, str(cache))
    return cache


def test_the_key_follows_scripts_requirements_and_pins_and_not_who_builds(tmp_path: Path) -> None:
    script = tmp_path / "recipe.py"
    script.write_text("packages")
    known = image.key(INPUTS, [script])
    assert image.key(replace(INPUTS, python="/opt/python"), [script]) == known
    others = {
        image.key(replace(INPUTS, requirements=("a>=1",)), [script]),
        image.key(replace(INPUTS, requirements=("a>=1", "b", "a==1.2"), pins=()), [script]),
        image.key(replace(INPUTS, pins=("a==1.3",)), [script]),
    }
    script.write_text("packages and one more")
    others.add(image.key(INPUTS, [script]))
    assert len(others | {known}) == 5


def test_the_guest_gets_what_the_project_requires_in_the_versions_of_the_host() -> None:
    found = image.inputs()
    names = {line.split(">")[0].split("[")[0] for line in found.requirements}
    assert {"msgspec", "psycopg", "pytest", "pytest-timeout"} <= names
    assert f"msgspec=={importlib.metadata.version('msgspec')}" in found.pins
    assert not any(line.startswith(("ruff", "mypy")) for line in found.requirements)


def test_a_machine_that_is_no_amd64_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert image.missing() == ["an amd64 processor (this is aarch64)"]


def test_what_is_not_installed_is_named_and_building_needs_root(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(programs, "find", lambda name: None if name == "mmdebstrap" else name)
    assert image.missing() == ["root, to build the guest's image", "mmdebstrap"]
    monkeypatch.setattr(image, "cached", lambda: image.Image(directory=Path("/image")))
    assert image.missing() == []


def build_writing(name: str) -> object:
    def build(into: Path, _inputs: recipe.Inputs, say: recipe.Say) -> None:
        say("writing")
        (into / name).write_text("whole")

    return build


def test_an_image_is_built_once_and_again_only_when_asked(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    assert image.cached() is None
    monkeypatch.setattr(recipe, "build", build_writing("first"))
    made = image.need(said.append)
    assert (made.directory / "first").read_text() == "whole"
    monkeypatch.setattr(recipe, "build", build_writing("second"))
    assert image.need(said.append) == made == image.cached()
    assert (made.directory / "first").exists()
    assert image.need(said.append, again=True) == made
    assert [path.name for path in made.directory.iterdir()] == ["second"]
    assert len(said) == 4


def test_a_build_that_fails_leaves_nothing_and_a_killed_one_is_swept(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(into: Path, _inputs: recipe.Inputs, _say: recipe.Say) -> None:
        (into / "half").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe, "build", fails)
    with pytest.raises(KeyboardInterrupt):
        image.need(lambda _line: None)
    assert image.cached() is None
    assert [path.name for path in own_cache.iterdir()] == [".lock"]
    (own_cache / ".building-killed").mkdir()
    monkeypatch.setattr(recipe, "build", build_writing("root.img"))
    made = image.need(lambda _line: None)
    assert sorted(path.name for path in own_cache.iterdir()) == [".lock", made.directory.name]
