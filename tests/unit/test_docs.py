"""What the documents name is there: files, anchors, tests, functions, commands with their options, make targets.

Pages are README, CONTRIBUTING, CHANGELOG and all of ``docs/``. Comments and docstrings are held to the same where they
name a path, a test, a command or another part of the code.
"""

from __future__ import annotations

import ast
import errno
import os
import re
import runpy
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import click
import pytest

import raykeeper
from raykeeper import limits
from raykeeper.cli.main import cli
from rooms import ROOT, product_files

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
PRODUCT = product_files()
CODE = [
    *PRODUCT,
    *(path for folder in ("tests", "examples", "benchmarks", "docs") for path in sorted((ROOT / folder).rglob("*.py"))),
]
TEXTS = {path: path.read_text() for path in CODE}
PAGE_TEXTS = {page: page.read_text() for page in PAGES}
CONFIGURATION = {
    ROOT / name: (ROOT / name).read_text()
    for name in ("cluster.yaml", "pyproject.toml", ".importlinter", "Makefile", "tests/pytest.ini")
}
MAKEFILE = CONFIGURATION[ROOT / "Makefile"]
ROOMS = ("actors", "benchmarks", "cli", "docs", "examples", "raft", "schema", "store", "tests")
"""Folders of the root: a path that begins with one of them is a path from the root."""

COMMENT = re.compile(r'"""(?:.|\n)*?"""|#[^\n]*')
BARE = {path: COMMENT.sub("", text) for path, text in TEXTS.items()}
"""The code without docstrings and comments, so that a stale name does not vouch for itself."""
WORDS = {word for text in (*BARE.values(), *CONFIGURATION.values()) for word in re.findall(r"\w+", text)}
CLASSES: dict[str, list[str]] = defaultdict(list)
"""By the name of a class, the code of the files that define one of that name."""
for text in BARE.values():
    for name in re.findall(r"^ *class (\w+)", text, re.MULTILINE):
        CLASSES[name].append(text)
MODULES: dict[str, list[str]] = defaultdict(list)
"""By the name of a module or package of the product, its code."""
for path in PRODUCT:
    for name in path.relative_to(ROOT).with_suffix("").parts:
        MODULES[name].append(BARE[path])
MODULES["client"].append(BARE[ROOT / "actors" / "handles.py"])  # also what a handle is called in examples
ELSEWHERE = {"EtcdServer", "RawNode", "LoggingConfig", "PR_SET_PDEATHSIG"}
"""Names of etcd, Ray and Linux."""
IN_LAYERS = ("Node", "State", "Client", "AsyncClient", "Cluster")
"""Classes that are made in layers, a file each."""


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", paths, ids=label)


def complain(found: list[str]) -> None:
    assert not found, "\n".join(found)


# --- links, paths and tests ------------------------------------------------------------------------------------------


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", PAGE_TEXTS[page], flags=re.M | re.S), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
    return found


@each(PAGES)
def test_links_lead_somewhere(page: Path) -> None:
    for link, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", PAGE_TEXTS[page]):
        target = Path(os.path.normpath(page.parent / link)) if link else page
        assert target.exists(), f"no file {link}"
        assert not anchor or anchor in anchors(target), f"no heading #{anchor} in {label(target)}"


@each(PAGES)
def test_named_files_exist(page: Path) -> None:
    paths = {f"/{label(path)}" for path in CODE}
    for name in re.findall(r"`([\w/]+\.py)\b", PAGE_TEXTS[page]):
        assert any(path.endswith(f"/{name}") for path in paths), f"no file {name}"


def test_named_paths_exist() -> None:
    """``actors/member/`` is a folder, ``store/log/raft_log.py`` a file; in pages, comments and configuration alike."""
    path_like = re.compile(rf"(?<![\w/.<>~$-])(?:{'|'.join(ROOMS)})/[\w/.*-]*[\w/*]")
    generated = {"tests/.pytest_cache"}
    complain(
        [
            f"{label(page)} names {name}"
            for page, text in {**PAGE_TEXTS, **TEXTS, **CONFIGURATION}.items()
            for name in path_like.findall(re.sub(r"\]\([^)]*\)", "]", text))
            if name not in generated and not (ROOT / name).exists() and not any(ROOT.glob(name))
        ]
    )


def test_named_tests_exist() -> None:
    """Files, and functions in them; the rooms have some file names in common."""
    sources: dict[str, str] = defaultdict(str)
    for path, text in TEXTS.items():
        if path.name.startswith("test_"):
            sources[path.name] += text
    complain(
        [
            f"{label(page)} names {file}::{name}"
            for page, text in {**PAGE_TEXTS, **TEXTS, **CONFIGURATION}.items()
            for file, name in re.findall(r"\b(test_\w+\.py)(?:::(\w+))?", text)
            if file not in sources or (name and f"def {name}(" not in sources[file])
        ]
    )


def test_named_mutants_exist() -> None:
    """The page of arguments names wrong versions of the code in italics."""
    page = PAGE_TEXTS[ROOT / "docs" / "correctness.md"]
    sources = "".join(text for path, text in TEXTS.items() if path.parent == ROOT / "tests" / "simulation" / "mutants")
    mutants = set(re.findall(r'@mutant\(\s*"([^"]+)"', sources))
    named = {" ".join(name.split()) for name in re.findall(r"(?<!\*)\*([^*]+)\*(?!\*)", page)}
    assert len(named) > 30
    complain(sorted(named - mutants))


# --- names of the code -----------------------------------------------------------------------------------------------


def defines(sources: list[str], name: str) -> bool:
    made = re.compile(rf"\bdef {name}\b|\bclass {name}\b|\bself\.{name}\b|\b{name}(?:: | = )|\"{name}\"")
    return any(name in text and made.search(text) for text in sources)


@each(PAGES)
def test_named_methods_exist(page: Path) -> None:
    for owner, name in set(re.findall(r"`([A-Z]\w+)\.(\w+)", PAGE_TEXTS[page])):
        assert CLASSES[owner], f"no class {owner}"
        assert defines(list(BARE.values()) if owner in IN_LAYERS else CLASSES[owner], name), f"no {owner}.{name}"


@each(PAGES)
def test_named_identifiers_exist(page: Path) -> None:
    """`next_wakeup`, `_on_append`, `AppendEntries`: a name stands somewhere in the code. Names of metrics are compared
    with a real scrape (``test_proxy_metrics.py``)."""
    spans = re.findall(
        r"`([A-Za-z_][\w.]*)(?:\(\))?`", re.sub(r"`(etcd|grpc|raykeeper|process|promhttp)_\w+`", "", PAGE_TEXTS[page])
    )
    named = {word for span in spans if not span.endswith(".py") for word in span.split(".")}
    compound = {word for word in named if "_" in word.strip("_") or re.fullmatch(r"(?:[A-Z][a-z]+)+|[A-Z]{4,}", word)}
    assert sorted(compound - WORDS - ELSEWHERE) == []


def test_paths_by_names_alone_exist() -> None:
    """``handle.put -> view.put -> hub.call``: each name is defined in the module, package or class before the dot."""
    page = PAGE_TEXTS[ROOT / "docs" / "architecture" / "one-put.md"]
    blocks = re.findall(r"^```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    hops = {hop for block in blocks for hop in re.findall(r"\b(\w+)\.(\w+)", block)}
    assert len(hops) > 30
    elsewhere = {"node": MODULES["raft"], "signal": MODULES["client"]}  # in layers; a protocol of several
    complain(
        [
            f"{owner}.{name}"
            for owner, name in sorted(hops)
            if not defines(elsewhere.get(owner) or CLASSES.get(owner) or MODULES.get(owner, []), name)
        ]
    )


def test_hand_overs_start_where_the_table_says() -> None:
    """`self._store` of `RaftLog`, `done` of `Proposal`: the class, or the file, has an attribute of that name."""
    page = PAGE_TEXTS[ROOT / "docs" / "architecture" / "one-put.md"]
    rows = re.findall(r"^\| (`(?:self\.)?\w+`) (of|in) (`.*?) \|", page, re.MULTILINE)
    assert len(rows) > 10
    bodies = {
        node.name: ast.unparse(node)
        for path in PRODUCT
        for node in ast.walk(ast.parse(TEXTS[path]))
        if isinstance(node, ast.ClassDef)
    }
    found = []
    for name, kind, owners in rows:
        for owner in re.findall(r"`([^`]+)`", owners):
            text = BARE[ROOT / owner] if kind == "in" else bodies.get(owner.partition(".")[0], "")
            if not re.search(rf"(?<![\w.]){re.escape(name.strip('`'))}\b", text):
                found.append(f"no {name} {kind} {owner}")
    complain(found)


def test_names_in_docstrings_exist() -> None:
    """``wiring.wire``, ``Replica.turn``, ``READ_SCAN_KEYS`` and :meth:`run_locked` in comments and docstrings."""
    found = []
    for path in PRODUCT:
        for comment in COMMENT.findall(TEXTS[path]):
            for literal, role in re.findall(r"``([A-Za-z_][\w.]*\w)(?:\(\))?``|:\w+:`~?([\w.]+)`", comment):
                name = literal or role
                owner, _, rest = name.partition(".")
                if not rest:
                    looks_like_code = "_" in name.strip("_") or re.fullmatch(r"(?:[A-Z][a-z]+){2,}", name)
                    known = name in ELSEWHERE or name in WORDS or name in MODULES
                    if (role or looks_like_code) and not known:
                        found.append(f"{label(path)} names {name}")
                elif owner in CLASSES and owner not in IN_LAYERS and not defines(CLASSES[owner], rest):
                    found.append(f"{label(path)} names {name}")
                elif owner in MODULES and rest not in ("py", "yaml"):
                    last = rest.rpartition(".")[2]
                    if last not in MODULES and not any(re.search(rf"\b{last}\b", text) for text in MODULES[owner]):
                        found.append(f"{label(path)} names {name}")
    complain(found)


@each(PAGES)
def test_named_settings_exist(page: Path) -> None:
    """``limits.max_key_bytes``, ``timings.check_interval``: fields of the spec; RAYKEEPER_X: a variable of ours."""
    fields = {
        "limits": limits.Limits.__struct_fields__,
        "timings": limits.Timings.__struct_fields__,
        "compaction": limits.Compaction.__struct_fields__,
    }
    for section, name in re.findall(r"`(limits|timings|compaction)\.(?!py)(\w+)", PAGE_TEXTS[page]):
        assert name in fields[section], f"no {section}.{name}"
    variables = set(re.findall(r"\bRAYKEEPER_\w+", PAGE_TEXTS[page]))
    assert sorted(name for name in variables if not any(name in text for text in BARE.values())) == []


@each(PAGES)
def test_examples_in_python_use_what_there_is(page: Path) -> None:
    """Blocks of Python parse, and use only public names of the package and methods of its handles."""
    owners = {"raykeeper": raykeeper, "kv": raykeeper.Client, "cluster": raykeeper.Cluster}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE_TEXTS[page], re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in owners:
                assert hasattr(owners[node.value.id], node.attr), f"no {ast.unparse(node)}"
    for owner, name in re.findall(r"`(raykeeper|kv)\.(\w+)\(", PAGE_TEXTS[page]):
        assert hasattr(owners[owner], name), f"no {owner}.{name}"


def test_quoted_messages_exist() -> None:
    """``m2 NOSPACE: its data takes ... of a quota of ...``: what lies between the dots stands in a message."""
    messages = re.sub(r'"\s+f?"', "", "\n".join(TEXTS[path] for path in PRODUCT))
    found = []
    for span in re.findall(
        r"(?<!`)`([^`]*\w \.\.\.[^`]*|\.\.\. [^`]*)`(?!`)", PAGE_TEXTS[ROOT / "docs" / "operations.md"]
    ):
        for part in re.sub(r"^(?:m\d,? ?)+(?:[A-Z]+: )?", "", span).split("..."):
            words = part.strip("(); ,")
            if " " in words and words not in messages and words != os.strerror(errno.EROFS):
                found.append(words)
    look_for = re.search(r"look for \|\n(.*?)\n\n", PAGE_TEXTS[ROOT / "docs" / "operations.md"], re.DOTALL)
    assert look_for is not None
    for span in re.findall(r"`([^`]+)`", look_for[1]):
        parts = [part.strip() for part in re.split(r"\b(?:m\d|[A-Z]{4,})\b", span)]
        found += [span for part in parts if part not in messages]
    complain(found)


# --- commands --------------------------------------------------------------------------------------------------------


def code_of(page: Path) -> str:
    """The code of a page: its spans and blocks, a line each; in Python, the spans of comments and strings."""
    text = {**PAGE_TEXTS, **TEXTS, **CONFIGURATION}[page]
    spans = [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
    blocks = [] if page.suffix == ".py" else re.findall(r"^(?: {4}|\$ )(.*)$", text, re.MULTILINE)
    fenced = [] if page.suffix == ".py" else re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return "\n".join([*spans, *blocks, *fenced])


def commands_of(group: click.Command) -> dict[str, click.Command]:
    """Its subcommands by name, loaded; none if it has none."""
    if not isinstance(group, click.Group):
        return {}
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def options_of(command: click.Command) -> set[str]:
    own = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return own | {"-h", "--help"}


def mistakes(words: list[str]) -> Iterator[str]:
    """What is wrong with a command line of ``raykeeper``, as docs show it (``[--learner]``, ``grant|revoke``)."""
    command: click.Command = cli
    while (commands := commands_of(command)) and words:
        names = re.findall(r"[\w-]+", words.pop(0))
        if names and names[0].isupper():  # COMMAND
            return
        for name in names:
            if name not in commands and not name.startswith("--"):
                yield f"no command {name}"
                return
        if names and names[0] in commands:
            command = commands[names[0]]
    words = words[: words.index("--")] if "--" in words else words
    for option in re.findall(r"(?<![\w-])--?[a-z][\w-]*", re.sub(r"'[^']*'|\"[^\"]*\"", "''", " ".join(words))):
        if option not in options_of(command):
            yield f"raykeeper {command.name} has no {option}"


def all_options(command: click.Command) -> set[str]:
    return options_of(command).union(*(all_options(each) for each in commands_of(command).values()))


def test_commands_exist() -> None:
    """``raykeeper member add --learner`` in pages, comments and messages: each command, with these options."""
    found = []
    for page in (*PAGES, *CODE):
        for line in code_of(page).splitlines():
            for rest in re.findall(r"(?:^|[\s(|'])raykeeper ((?:[\w\[-][^`;)#$]*)?)", line):
                words = re.split(r"\s+", re.split(r" \| |<<|>", rest.replace("\\|", "|"))[0].strip())
                found += [f"{label(page)}: {mistake} ({rest.strip()})" for mistake in mistakes(words) if words != [""]]
    complain(found)


def test_the_page_of_the_command_names_its_commands_and_options() -> None:
    """The first column of its table, and every option anywhere on the page; and it leaves no command out."""
    text = (ROOT / "docs" / "cli.md").read_text()
    first = re.findall(r"^\| (`.*?) \| ", text.partition("Exit status")[0], re.MULTILINE)
    lines = [span.replace("\\|", "|") for cell in first for span in re.findall(r"`([^`]+)`", cell)]
    complain([f"{mistake} ({line})" for line in lines for mistake in mistakes(line.split())])
    options = set(re.findall(r"`(--[a-z][\w-]+)", text)) - {"--head", "--all"}  # of ray start; of the user's program
    assert sorted(options - all_options(cli)) == []
    named = {line.split()[0] for line in lines}
    assert sorted(name for name, command in commands_of(cli).items() if not command.hidden and name not in named) == []


def test_each_entry_of_the_runbook_names_the_tests_that_try_it() -> None:
    """Each row of its tables, and each section without one. That the tests exist is checked above."""
    sections = (ROOT / "docs" / "runbook.md").read_text().split("\n## ")[1:]
    rows = [row for each in sections for row in re.findall(r"^\| (?!you see)[^-\n].*\|$", each, re.MULTILINE)]
    assert len(rows) > 20
    complain([row[:60] for row in rows if not re.search(r"`test_\w+\.py", row.rsplit(" | ", 1)[1])])
    prose = [each for each in sections if "\n|" not in each]
    assert len(prose) > 7
    complain([each.partition("\n")[0] for each in prose if not re.search(r"`test_\w+\.py", each)])


def test_make_targets_exist() -> None:
    """``make simulate SEED=7``, ``make lint | unit``: targets and variables of the Makefile."""
    targets = set(re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE))
    found = []
    for page in (*PAGES, *CODE, *CONFIGURATION):
        for line in code_of(page).splitlines():
            for rest in re.findall(r"^make ([^#]*)", line):
                words = [word for word in re.split(r"[\s|]+", re.sub(r"\"[^\"]*\"", "", rest).strip()) if word]
                for word in words:
                    name, assigned, _ = word.partition("=")
                    known = f"$({name})" in MAKEFILE or f"$(if $({name})" in MAKEFILE if assigned else name in targets
                    if not known:
                        found.append(f"{label(page)}: make {word}")
    complain(found)


def test_programs_and_their_options_exist() -> None:
    """``python examples/locks.py [--contenders N]`` in pages, and in the programs' own headers."""
    found = []
    for page, text in {**PAGE_TEXTS, **TEXTS, **CONFIGURATION}.items():
        for program, rest in re.findall(r"\b(?:python3?|bin/python\)?) ((?:\w+/)+\w+\.py)([^\n`]*)", text):
            source = TEXTS.get(ROOT / program, "")
            missing = [option for option in re.findall(r"--[a-z][\w-]*", rest) if f'"{option}"' not in source]
            found += [f"{label(page)}: {program} {what}" for what in (missing if source else ["does not exist"])]
    complain(found)


# --- generated pages -------------------------------------------------------------------------------------------------


def test_generated_pages_are_current() -> None:
    """`make docs` writes them."""
    pages = runpy.run_path(str(ROOT / "docs" / "tables.py"))["PAGES"]
    stale = [path.name for path, make in pages.items() if not path.exists() or path.read_text() != make()]
    assert stale == [], "run make docs"


def test_the_unit_of_a_rate_is_one() -> None:
    """A limit that is a number a second is not one of seconds."""
    page = (ROOT / "docs" / "reference" / "limits.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|", page, re.MULTILINE)
    rates = {name: unit for name, unit in rows if re.search("_per_s(econd)?$", name, re.IGNORECASE)}
    assert len(rates) > 5
    assert [name for name, unit in rates.items() if not unit.endswith("a second")] == []
