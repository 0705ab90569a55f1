"""Protects the pages: their links, files and commands exist, and their programs run."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from folders import ROOT
from markdown.extensions.toc import slugify
from markdown_it import MarkdownIt

from rnnjit.cli import build_parser
from rnnjit.runtime.object_cache import DIRECTORY_VARIABLE

PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
}
TOKENS = {
    name: MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    for name, path in PAGES.items()
}
#: What commands on the pages write, and what stands for a name of the reader's choice.
WRITTEN = ("build/docs", "examples/output/", "docs/pictures/NAME")
LARGEST_README = 7_000


def flat(tokens):
    """All tokens, those inside of others too."""
    for token in tokens:
        yield token
        yield from flat(token.children or ())


class Sources(HTMLParser):
    """What the attributes of HTML elements refer to."""

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("href", "src", "srcset")]


def targets(tokens):
    """Where a page's links and pictures lead."""
    for token in flat(tokens):
        if token.type == "link_open":
            yield token.attrs["href"]
        elif token.type == "image":
            yield token.attrs["src"]
        elif token.type in ("html_block", "html_inline"):
            yield from Sources(token.content).found


def pictures(tokens):
    """The pictures that a page shows, each by the name of its light variant."""
    return {target.replace("-dark.svg", ".svg") for target in targets(tokens) if ".svg" in target}


def anchors(tokens):
    """The headings of a page, as GitHub and mkdocs name them in links."""
    return {
        slugify(following.content, "-")
        for token, following in pairwise(tokens)
        if token.type == "heading_open"
    }


def code(tokens, kinds=("code_inline", "code_block", "fence")):
    return [token.content for token in flat(tokens) if token.type in kinds]


def words(tokens):
    """The words of a page's code, without what punctuation puts around them."""
    return [word.strip("`'\"(),:;") for text in code(tokens) for word in text.split()]


def figures(tokens):
    """The rows of a page's tables that hold ratios, each as the text of its cells."""
    row, found = [], []
    for token in tokens:
        if token.type == "tr_open":
            row = []
        elif token.type == "inline":
            row.append(token.content)
        elif token.type == "tr_close" and any(re.search(r"\d[\d.]*x\b", cell) for cell in row):
            found.append(tuple(row))
    return found


def missing_targets(name, tokens, pages=None):
    """The links of a page that lead nowhere."""
    pages = TOKENS if pages is None else pages
    for target in targets(tokens):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        place = (ROOT / name).parent / path if path else ROOT / name
        if not place.exists():
            yield target
        elif anchor:
            page = str(place.resolve().relative_to(ROOT))
            if anchor not in anchors(pages[page]):
                yield target


def missing_files(name, tokens):
    """The files that a page's code names and that are not there."""
    stem = name.removeprefix("docs/internals/").removesuffix(".md")
    bases = [ROOT, ROOT / "rnnjit", ROOT / "backends" / f"rnnjit_{stem}"]
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()}
    for word in words(tokens):
        named = word.split("/")[0] in tops and "/" in word
        if not named and not re.fullmatch(r"[\w/]+\.(py|toml|txt)", word):
            continue
        if "<" in word or word.startswith(WRITTEN):
            continue
        if not any((base / word).exists() for base in bases):
            yield word


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    assert [*missing_targets(name, TOKENS[name])] == []


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_exist(name):
    assert [*missing_files(name, TOKENS[name])] == []


def test_what_is_not_there_is_seen():
    tokens = MarkdownIt("commonmark").parse(
        "[a](docs/none.md) [b](#none) [c](docs/use.md#none) [d](docs/use.md) ![e](none.svg)\n"
        '`pytest tests/none.py` `none.py` `frontend/stream.py`\n\n<img src="none.png">\n\n# Head\n'
    )
    assert [*missing_targets("README.md", tokens, {**TOKENS, "README.md": tokens})] == [
        *("docs/none.md", "#none", "docs/use.md#none", "none.svg", "none.png")
    ]
    assert [*missing_files("README.md", tokens)] == ["tests/none.py", "none.py"]


@pytest.mark.parametrize("name", PAGES)
def test_targets_of_make_exist(name):
    known = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text()))
    said = re.findall(r"\bmake ([\w-]+)", "\n".join(code(TOKENS[name])))
    assert set(said) - known == set()


COMMANDS = [
    (name, line.strip())
    for name, tokens in TOKENS.items()
    for text in code(tokens, ("code_block", "fence"))
    for line in text.splitlines()
    if line.strip().startswith("rnnjit ")
]


@pytest.mark.parametrize(("name", "line"), COMMANDS)
def test_command_lines_are_understood(name, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    build_parser().parse_args(shlex.split(line, comments=True)[1:])


def help_of(capsys, *command):
    with pytest.raises(SystemExit):
        build_parser().parse_args([*command, "--help"])
    return capsys.readouterr().out


def test_the_page_of_the_command_line_has_all_commands_and_none_but_their_flags(capsys):
    commands = re.findall(r"(?m)^    (\w+) ", help_of(capsys))
    page = [line.split()[1] for name, line in COMMANDS if name == "docs/cli.md"]
    assert set(page) == set(commands)
    known = {"--help"}
    for command in commands:
        known.update(re.findall(r"--[\w-]+", help_of(capsys, command)))
    said = re.findall(r"--[\w-]+", "\n".join(code(TOKENS["docs/cli.md"])))
    assert set(said) - known == set()


def test_the_readme_is_short():
    assert PAGES["README.md"].stat().st_size <= LARGEST_README


def test_a_figure_stands_on_one_page():
    shown = defaultdict(set)
    for name, tokens in TOKENS.items():
        for row in figures(tokens):
            shown[row].add(name)
        for picture in pictures(tokens):
            shown[((ROOT / name).parent / picture).resolve()].add(name)
    assert len(shown) > 30
    assert {key: names for key, names in shown.items() if len(names) > 1} == {}


PROGRAMS = {
    name: "\n".join(
        token.content for token in flat(tokens) if token.type == "fence" and token.info == "python"
    )
    for name, tokens in TOKENS.items()
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A cache of their own: what pages measure is not for other tests to choose by."""
    cache = tmp_path_factory.mktemp("cache")
    for kernels in Path(os.environ[DIRECTORY_VARIABLE]).glob("*.o"):
        shutil.copy2(kernels, cache)
    own = {DIRECTORY_VARIABLE: str(cache), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


@pytest.mark.parametrize("name", [name for name, program in PROGRAMS.items() if program])
def test_the_python_of_a_page_runs_as_one_program(name, environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAMS[name]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if name == "README.md":
        assert "-> numba" in done.stdout
