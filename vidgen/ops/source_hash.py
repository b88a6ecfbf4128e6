"""Hashes of kernel sources, blind to comments and layout: what the GPU manifest is keyed by.

A kernel's hash covers its own file and every file of ours that it imports or includes. For Triton, and for an executor
that is written in Python, it is taken from the installed .py files when it is asked for; for CUDA C++ it is taken when
the library is compiled and baked in, so that it is the hash of what runs and not of what happens to lie in a source
folder. The build runs this file as a script; so only the standard library is used here.
"""

from __future__ import annotations

import ast
import hashlib
import io
import os
import re
import sys
import tokenize
from collections.abc import Callable, Iterable
from pathlib import Path

# a comment, or a literal that may look like one inside: raw string, string, character
_CPP_TOKEN = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"([^ ()\\\t\n]*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL
)
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


def strip_cpp(source: str) -> str:
    """C++ without comments; white space is one blank or one line break."""

    def without_comment(match: re.Match[str]) -> str:
        return " " if match[0].startswith(("//", "/*")) else match[0]

    lines = (" ".join(line.split()) for line in _CPP_TOKEN.sub(without_comment, source).splitlines())
    return "\n".join(line for line in lines if line)


def strip_python(source: str) -> str:
    """Python without comments, docstrings, blank lines and trailing white space.

    Comments and docstrings are cut out of the text by position: the tokens of an f-string differ between versions of
    Python, its text does not.
    """
    lines = [list(line) for line in source.splitlines()]

    def blank(row: int, start: int, end: int) -> None:
        lines[row - 1][start:end] = " " * (end - start)

    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            blank(token.start[0], token.start[1], token.end[1])
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        first = node.body[0] if node.body else None
        if not (
            isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
        ):
            continue
        for row in range(first.lineno, (first.end_lineno or first.lineno) + 1):
            lines[row - 1] = []
    return "\n".join(line for line in ("".join(line).rstrip() for line in lines) if line)


def _included(path: Path, source: str, root: Path) -> list[Path]:
    found = []
    for name in _INCLUDE.findall(source):
        for candidate in (path.parent / name, root / name):
            if candidate.is_file():
                found.append(candidate)
                break
    return found


def _imported(path: Path, source: str, root: Path) -> list[Path]:
    """Modules of the folder `root` that the module `path` imports relatively or as vidgen.<name of the folder>."""
    names: list[str] = []
    package = ["vidgen", root.name]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == 0:
                if module.split(".")[:2] != package:
                    continue
                module = ".".join(module.split(".")[2:])
            names += [module] if module else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            prefix = ".".join([*package, ""])
            names += [alias.name[len(prefix) :] for alias in node.names if alias.name.startswith(prefix)]
    candidates = [root / f"{name.replace('.', '/')}.py" for name in names]
    return [candidate for candidate in candidates if candidate.is_file()]


def _hash(
    roots: Iterable[Path],
    folder: Path,
    strip: Callable[[str], str],
    uses: Callable[[Path, str, Path], list[Path]],
) -> str:
    texts: dict[str, str] = {}
    pending = list(roots)
    while pending:
        path = pending.pop()
        name = Path(os.path.relpath(path, folder)).as_posix()
        if name not in texts:
            source = path.read_text(encoding="utf-8")
            texts[name] = strip(source)
            pending += uses(path, source, folder)
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(f"{name}\0{texts[name]}\0".encode())
    return digest.hexdigest()[:32]


def triton_hash(kernels: Path, op: str) -> str:
    """Hash of kernels/<op>.py and of what it imports from that folder."""
    return _hash([kernels / f"{op}.py"], kernels, strip_python, _imported)


def executor_hash(sampling: Path, module: str) -> str:
    """Hash of sampling/<module>.py, an executor in Python, and of what it imports from that folder."""
    return _hash([sampling / f"{module}.py"], sampling, strip_python, _imported)


def cuda_hash(csrc: Path, op: str) -> str:
    """Hash of csrc/cuda/<op>.cu, its binding csrc/bind/<op>_cuda.cpp and the files of csrc that they include."""
    return _hash([csrc / "cuda" / f"{op}.cu", csrc / "bind" / f"{op}_cuda.cpp"], csrc, strip_cpp, _included)


def hashes_in_cpp(csrc: Path) -> str:
    """A C++ file with a function that gives the hash of every op in csrc/cuda, to be linked with them."""
    ops = sorted(path.stem for path in (csrc / "cuda").glob("*.cu"))
    cases = "".join(f'  if (std::strcmp(op, "{op}") == 0) return "{cuda_hash(csrc, op)}";\n' for op in ops)
    return (
        "#include <cstring>\n\n"
        'extern "C" __attribute__((visibility("default"))) const char* vidgen_cuda_source_hash(const char* op) {\n'
        f'{cases}  return "";\n}}\n'
    )


def _main() -> None:
    csrc, output = Path(sys.argv[1]), Path(sys.argv[2])
    temporary = output.with_name(output.name + ".part")
    temporary.write_text(hashes_in_cpp(csrc), encoding="utf-8")
    temporary.replace(output)


if __name__ == "__main__":
    _main()
