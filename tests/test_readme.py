"""The pages say what is true: links lead somewhere, commands and options exist."""

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
import tifffile
import torch
import yaml
import zarr
from packaging.requirements import Requirement
from packaging.version import Version

import tilenet
from tilenet.cli.main import cli

ROOT = Path(__file__).parent.parent
FOLDERS = [ROOT, ROOT / "benchmarks", ROOT / "pipelines"]
PAGES = [*(folder / "README.md" for folder in FOLDERS), *sorted((ROOT / "docs").glob("*.md"))]


def commands_of(text):
    """Return every `tilenet ...` command line of a page that is to be typed, and those that are mentioned."""
    text = re.sub(r"\\\n +", "", text)  # a line that goes on below
    lines = re.findall(r"^ {4,}(tilenet [a-z].*)$", text, re.M) + re.findall(r"&& (tilenet [^&\n]+)", text)
    return [line.strip() for line in lines], re.findall(r"`(tilenet [^`]+)`", text)


def refusal(line):
    """Return why the command would not take a line that is to be typed."""
    _, name, *words = shlex.split(line, comments=True)
    try:
        cli.commands[name].make_context(name, words)
    except click.exceptions.Exit:
        return None
    except (click.ClickException, tilenet.TilenetError) as error:
        return str(error)


def misuses(line):
    """Return what a command line says that the command does not know."""
    words = [w for w in shlex.split(line.replace("...", ""), comments=True) if w]
    command = cli.commands.get(words[1])
    if command is None:
        return [] if words[1].startswith("-") else [f"no command {words[1]}"]
    known = {name for option in command.params for name in option.opts} | {"--help"}
    return [w for w in words[2:] if w.startswith("-") and w not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def anchors_of(page):
    """Return what the headings of a page are linked by."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_to_a_heading_leads_to_one(page):
    links = re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", page.read_text())
    assert [(at, to) for at, to in links if to not in anchors_of(page.parent / at if at else page)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_command_and_option_exists(page):
    typed, mentioned = commands_of(page.read_text())
    assert [(line, wrong) for line in typed + mentioned if (wrong := misuses(line))] == []
    assert [(line, why) for line in typed if "$" not in line and (why := refusal(line))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_option_that_is_mentioned_alone_is_one_of_a_command(page):
    known = {name for command in [cli, *cli.commands.values()] for option in command.params for name in option.opts}
    elsewhere = {"--help", "--array", "--rounds", "--no-crop"}  # of sbatch, of benchmarks, of QuPath's scripts
    assert set(re.findall(r"`(--[a-z][\w-]*)", page.read_text())) - known - elsewhere == set()


def test_the_check_of_commands_can_fail():
    assert misuses("tilenet segmnet x") == ["no command segmnet"]
    assert misuses("tilenet segment x --titel 3") == ["--titel"]
    assert "Missing parameter" in refusal("tilenet verify --windows 3")
    assert "'lots' is not a number of bytes" in refusal("tilenet segment x -o y --memory lots")
    assert commands_of("    tilenet plan x\nor `tilenet info`\n") == (["tilenet plan x"], ["tilenet info"])
    assert commands_of("    tilenet plan x \\\n      --titel 3\n") == (["tilenet plan x --titel 3"], [])


def test_one_block_installs_and_runs_and_the_next_one_tests():
    segment, test = re.findall(r"^```sh\n(.*)\n```$", (ROOT / "README.md").read_text(), re.M)
    assert "tilenet segment slide.tif --out mask.zarr" in segment
    assert "pytest" in test


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_file_of_tests_or_pipelines_or_benchmarks_that_is_named_exists(page):
    named = set(re.findall(r"\b(?:tests|pipelines|benchmarks)/[\w/]+\.\w+", page.read_text()))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_table_of_everything_public_has_all_names_and_no_others():
    section = (ROOT / "docs" / "python.md").read_text().partition("## Everything public")[2]
    table = "".join(re.findall(r"^\|.*$", section, re.M))
    assert sorted(re.findall(r"`(\w+)`", table)) == sorted(tilenet.__all__)


def test_the_citation_and_the_package_have_the_version_of_the_code():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    packaged = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["version"] == packaged["version"] == tilenet.__version__


def test_the_source_distribution_has_the_files_that_the_tests_read():
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    read = {"tests", *re.findall(r'ROOT / "([\w./]+)"', tests)}
    listed = {name for line in (ROOT / "MANIFEST.in").read_text().splitlines() for name in line.split()}
    assert {"docs", "benchmarks", "CITATION.cff"} < read
    assert read - listed <= {"tilenet", "pyproject.toml", "README.md", "MANIFEST.in"}  # which every one has


def test_help_names_every_function():
    named = re.findall(r"`(\w+)`", tilenet.__doc__)
    assert set(named) <= set(tilenet.__all__)
    assert {name for name in tilenet.__all__ if name.islower()} <= set(named)


def python_blocks():
    """Return every block of Python of the pages."""
    return [
        pytest.param(block, id=f"{page.stem}-{k}")
        for page in PAGES
        for k, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M))
    ]


def padded_network():
    """Return one that pools three times, as the page says of `MyPaddedNetwork`."""
    return torch.nn.Sequential(tilenet.UNet(depth=4, wf=1, padding=True))


def valid_network():
    """Return one that loses 32 px a side, as the page says of `MyValidNetwork`."""
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 65))


@pytest.fixture
def what_the_pages_name(tmp_path, monkeypatch):
    """Return the names that the blocks use, in a folder with the files that they read."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)  # one network in 700 has a pixel so close to a tie that a loop of one's own decides otherwise
    plane = np.random.default_rng(0).integers(0, 255, (96, 128), np.uint8)
    with tifffile.TiffWriter("slide.svs") as slide:
        for step in (1, 2):
            slide.write(plane[::step, ::step], tile=(16, 16), subifds=step % 2, subfiletype=step - 1)
    zarr.create_array("volume.zarr", data=np.zeros((513, 16, 16), np.uint8), dimension_names="zyx")
    network = tilenet.UNet(depth=2, wf=1).eval()
    volume = np.zeros((3, 40, 30), np.uint8)
    networks = {"MyPaddedNetwork": padded_network, "MyValidNetwork": valid_network}
    return {"tilenet": tilenet, "array": plane, "volume": volume, "network": network, **networks}


@pytest.mark.parametrize("block", python_blocks())
def test_every_block_of_python_runs_as_it_stands(block, what_the_pages_name):
    exec(block, what_the_pages_name)
    if "tilenet.lazy" in block:
        assert what_the_pages_name["plane"].ndim == 2
    if "plan_tiles" in block:
        array, network = (what_the_pages_name[name] for name in ("array", "network"))
        assert np.array_equal(what_the_pages_name["classes"], tilenet.segment(array, model=network))


def test_a_block_that_is_wrong_fails(what_the_pages_name):
    with pytest.raises(tilenet.ImageError):
        exec('tilenet.segment("no.svs", "mask.zarr")', what_the_pages_name)


def test_the_tables_of_speed_are_those_that_were_measured(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import table

    pages = [(table.render, table.README.read_text()), (table.render_figures, table.FIGURES.read_text())]

    def results():
        return json.loads(table.RESULTS.read_text())

    assert all(render(results()) in page for render, page in pages)
    for part in (lambda found: found["peers"], lambda found: found["efficiency"][2]):
        others = results()
        for row in part(others)["rows"]:
            row["px_per_s"] += 10**6
        assert not any(render(others) in page for render, page in pages)


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(text) for text in sum(project["optional-dependencies"].values(), project["dependencies"])]
    pinned = [Requirement(line) for line in (ROOT / "constraints-oldest.txt").read_text().splitlines()[1:]]
    oldest = {package.name: Version(next(iter(package.specifier)).version) for package in wanted if package.specifier}
    tested = {package.name: Version(next(iter(package.specifier)).version) for package in pinned}
    assert tested == {name: version for name, version in oldest.items() if name in tested}
    needed = {Requirement(text).name for text in project["dependencies"]}
    assert needed - set(tested) == {"torch"}
