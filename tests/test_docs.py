"""The documents tell the truth: their code runs, and the files, commands, options and variables they name exist."""

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vidgen.cli import COMMANDS, main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")
ROOMS = (".ci", "benchmarks", "build_support", "csrc", "docs", "kernels", "tests", "vidgen")


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text_of(document), flags=re.MULTILINE | re.DOTALL)


def code_spans(document: str) -> list[str]:
    prose = re.sub(r"^```.*?^```", "", text_of(document), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", prose)


def shell_lines(document: str) -> list[list[str]]:
    """What a reader would type, as words: the lines of sh blocks and the code spans of the text."""
    lines = [line for block in blocks(document, "sh") for line in block.splitlines()] + code_spans(document)
    commands = []
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue
        if words:
            commands.append(words)
    return commands


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_examples_run(document: str, tmp_path: Path) -> None:
    program = "\n".join(blocks(document, "python"))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_readme_has_examples() -> None:
    assert len(blocks("README.md", "python")) >= 3


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_exist(document: str) -> None:
    named = [span for span in code_spans(document) if re.fullmatch(r"[\w./-]+", span)]
    paths = [name for name in named if name.split("/")[0] in ROOMS and "/" in name]
    paths += [name for name in named if re.fullmatch(r"[\w-]+\.(md|txt|toml|py)|Makefile|LICENSE", name)]
    # a command.py is a kind of file and not one file; libraries are there once they are built
    paths = [name for name in paths if name != "command.py" and not name.endswith(".so")]
    missing = [name for name in paths if not (ROOT / name).exists()]
    assert not missing
    assert paths or document == "README.md"


@pytest.mark.parametrize("document", [*DOCUMENTS, "CHANGELOG.md"])
def test_links_lead_somewhere(document: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href|srcset)=\"([^\"]+)\"", text_of(document))
    local = [one or other for one, other in targets if not (one or other).startswith(("https://", "#"))]
    assert not [target for target in local if not (ROOT / target).exists()]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_make_targets_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", text_of("Makefile"), flags=re.MULTILINE))
    named = {words[1] for words in shell_lines(document) if words[0] == "make" and len(words) > 1}
    assert named, "no make command at all?"
    assert named <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_commands_and_their_options_exist(document: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [words for words in shell_lines(document) if words[0] == "vidgen" and len(words) > 1]
    for command in {words[1] for words in lines} - {"COMMAND"}:
        assert command in COMMANDS
        module, function, _ = COMMANDS[command]
        assert callable(getattr(importlib.import_module(module), function))
    for words in lines:
        options = {word.split("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)}
        if options and words[1] != "COMMAND":
            with pytest.raises(SystemExit, match="0"):
                main([words[1], "--help"])
            shown = capsys.readouterr().out
            assert options <= set(re.findall(r"(?<!\S)--?[a-z][\w-]*", shown)), f"vidgen {words[1]} has no {options}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_variables_are_read_somewhere(document: str) -> None:
    files = [
        path
        for room in ROOMS
        if room != "tests"
        for path in (ROOT / room).rglob("*")
        if path.suffix in (".py", ".cpp", ".h", "")
    ]
    sources = "".join(path.read_text(encoding="utf-8") for path in files if path.is_file())
    named = set(re.findall(r"\b(VIDGEN_[A-Z]+(?:_[A-Z]+)*)\b", text_of(document)))
    assert not {name for name in named if name not in sources}


def test_named_extras_exist() -> None:
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    named = set(re.findall(r"'\.\[([\w,]+)\]'", "\n".join(map(text_of, DOCUMENTS))))
    listed = re.search(r"The extras.*?\.\n", text_of("README.md"), flags=re.DOTALL)
    assert listed is not None
    named |= set(re.findall(r"`(\w+)`", listed.group()))
    assert named <= set(project["optional-dependencies"])


def test_ci_runs_what_the_readme_says() -> None:
    ci = text_of(".ci/run")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111, "it must be executable"
    assert re.search(r"^make test \|\| failed=1$", ci, flags=re.MULTILINE)
    assert re.search(r"^make lint \|\| failed=1$", ci, flags=re.MULTILINE)
    assert ci.rstrip().endswith('exit "$failed"')
    assert "set -euo pipefail" in ci


def test_no_constraint_names_torch() -> None:
    """A pin of torch would swap the user's own build for another, gigabytes later."""
    names = {line.split("==")[0].lower() for line in text_of("constraints.txt").splitlines() if "==" in line}
    assert "torch" not in names
    requires = tomllib.loads(text_of("pyproject.toml"))["build-system"]["requires"]
    assert not [one for one in requires if re.match(r"torch\b", one)], "pip would download it for an isolated build"
