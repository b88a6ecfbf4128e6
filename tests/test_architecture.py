"""The house is as CONTRIBUTING.md draws it: arrows run one way, and an op has one name in every room."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from vidgen.ops.backends import TABLE

ROOT = Path(__file__).resolve().parents[1]

# A module may import from its own room and from rooms of a lower rank. What is in no room (vidgen.extras, vidgen._host,
# …) is the ground that all stand on, and may itself import no room.
RANK = {
    "kernels": 0,
    "ops": 1,
    "inspection": 2,
    "nn": 2,
    "fusion": 3,
    "sampling": 3,
    "models": 4,
    "data": 4,
    "train": 5,
    "benchmarks": 5,
    "extraction": 5,
    "report": 6,
    "cli": 7,
}
# files of the package's own folder: these two show what ops know
INSPECTION = {"explain", "info"}
FACADE = "vidgen"


def room_of(module: str) -> str | None:
    """`vidgen.nn.prepack` -> "nn"; None for the ground."""
    parts = module.split(".")
    # the command line's functions stand in the rooms they are about
    if parts[-1] == "command":
        return "cli"
    if parts[1] in INSPECTION:
        return "inspection"
    return parts[1] if parts[1] in RANK else None


def python_files() -> Iterator[tuple[str, Path]]:
    """(module, file) of the package; kernels and benchmarks by the names under which they are imported."""
    for folder, prefix in (("vidgen", "vidgen"), ("kernels", "vidgen.kernels"), ("benchmarks", "vidgen.benchmarks")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            inside = path.relative_to(ROOT / folder)
            if folder != "vidgen" or inside.parts[0] not in ("kernels", "benchmarks"):
                yield ".".join([prefix, *inside.with_suffix("").parts]).removesuffix(".__init__"), path


def imports(module: str, path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever the statement stands; `from vidgen import nn` is vidgen.nn."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def forbidden(module: str, imported: str) -> str | None:
    """Why `module` may not import `imported`; None if it may."""
    if not imported.startswith("vidgen.") or module == FACADE:
        return None
    own, other = room_of(module), room_of(imported)
    if other is None or own == other:
        return None
    if own is None:
        return f"{module} is common ground and imports {imported}"
    if RANK[other] >= RANK[own]:
        return f"{module} ({own}) imports {imported} ({other})"
    if other == "kernels" and own != "ops":
        return f"{module} imports {imported}: only ops may, so that no call evades the backend table"
    return None


def test_arrows_run_one_way() -> None:
    files = list(python_files())
    assert {room_of(module) for module, _ in files if module != FACADE} >= set(RANK) - {"train", "report"}
    found = {reason for module, path in files for name in imports(module, path) if (reason := forbidden(module, name))}
    assert not found, "\n".join(sorted(found))


@pytest.mark.parametrize(
    ("module", "imported", "allowed"),
    [
        ("vidgen.ops.masked_conv2d", "vidgen.kernels.masked_conv2d", True),
        ("vidgen.ops.masked_conv2d", "vidgen.nn", False),
        ("vidgen.models.pixelcnn", "vidgen.kernels", False),
        ("vidgen.models.pixelcnn", "vidgen.sampling.heads", True),
        ("vidgen.sampling.generate", "vidgen.models", False),
        ("vidgen.fusion.network", "vidgen.nn", True),
        ("vidgen.nn.prepack", "vidgen.fusion", False),
        ("vidgen.sampling.command", "vidgen.models", True),
        ("vidgen.kernels.masked_conv2d", "vidgen.ops.backends", False),
        ("vidgen.extras", "vidgen.ops", False),
        ("vidgen.report.command", "vidgen.train", True),
        ("vidgen.train.loop", "vidgen.report", False),
        ("vidgen.extraction.pipeline", "vidgen.ops", True),
        ("vidgen.data.video_files", "vidgen.extraction", False),
    ],
)
def test_this_test_knows_the_arrows(module: str, imported: str, allowed: bool) -> None:
    assert (forbidden(module, imported) is None) == allowed


def test_no_file_is_imported_under_two_names() -> None:
    """`import kernels` works from the root of the tree, and gives a second copy of every kernel and its caches."""
    found = []
    for folder in ("vidgen", "kernels", "benchmarks", "tests", "build_support"):
        for path in (ROOT / folder).rglob("*.py"):
            names = {name.partition(".")[0] for name in imports("x.y", path)}
            found += [f"{path.relative_to(ROOT)} imports {name}" for name in names & {"kernels", "benchmarks"}]
    assert not found


@pytest.mark.parametrize("room", ["cpu", "cuda", "host"])
def test_native_code_outside_the_bindings_does_not_know_torch(room: str) -> None:
    """A kernel that takes raw pointers compiles in seconds, and serves whoever binds it next."""
    found = []
    for path in sorted((ROOT / "csrc" / room).rglob("*.*")):
        text = path.read_text(encoding="utf-8")
        headers = re.findall(r"#\s*include\s*[<\"]((?:torch|ATen|c10|pybind11|Python\.h)[^>\"]*)", text)
        headers = [name for name in headers if not (room == "host" and name.startswith("pybind11"))]
        found += [f"{path.relative_to(ROOT)} includes {name}" for name in headers]
        found += [f"{path.relative_to(ROOT)} says {name}" for name in re.findall(r"\b(?:at|torch|c10)::\w+", text)]
    assert not found


def test_pybind11_is_in_one_room() -> None:
    users = {path.relative_to(ROOT).parts[1] for path in ROOT.glob("csrc/*/*.*") if "pybind11" in path.read_text()}
    assert users == {"host"}


OPS = sorted({re.sub(r"_grad_\w+$", "", name) for name in TABLE})


def rooms(op: str) -> dict[str, bool]:
    """Every file that carries an op's name -> whether the op must have it, judged by its rows in the table."""
    backends = {row.name for row in TABLE[op]}
    return {
        f"vidgen/ops/{op}.py": True,
        f"benchmarks/bench_{op}.py": True,
        f"tests/ops/test_{op}.py": True,
        f"csrc/bind/{op}.cpp": "cpu" in backends,
        f"csrc/cpu/{op}.cpp": "cpu" in backends,
        f"kernels/{op}.py": "triton" in backends,
        f"csrc/cuda/{op}.cu": "cuda" in backends,
    }


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_one_name_in_every_room(op: str) -> None:
    wrong = [path for path, expected in rooms(op).items() if (ROOT / path).is_file() != expected]
    assert not wrong, f"missing, or there without a backend of that kind: {wrong}"
    assert re.search(rf'"{op}\(', (ROOT / "csrc" / "schemas.cpp").read_text()), "no schema of that name"
    import vidgen

    assert callable(getattr(vidgen.ops, op))


# what serves every op of its room; headers are shared as they come. sample_causal is the executors "cpu" and
# "persistent" of vidgen.sampling, whose table is that of executors
SHARED = {
    "kernels": {"__init__", "autotune", "gemm", "tiles"},
    "csrc/cpu": {"isa", "probe", "sample_causal"},
    "csrc/bind": {"sample_causal", "sample_causal_cuda"},
    "csrc/cuda": {"sample_causal"},
}


@pytest.mark.parametrize("room", sorted(SHARED))
def test_every_kernel_is_found_under_the_name_of_its_op(room: str) -> None:
    stems = {path.stem for path in (ROOT / room).iterdir() if path.suffix in (".py", ".cpp", ".cu")}
    strangers = {stem for stem in stems - SHARED[room] if not any(re.match(rf"{op}(_|$)", stem) for op in OPS)}
    assert not strangers


def test_every_contract_is_in_the_table() -> None:
    """An op that is in no table cannot be explained, forced or gated."""
    contracts = {path.stem for path in ROOT.glob("vidgen/ops/*.py") if "\ndef reference(" in path.read_text()}
    assert contracts == set(OPS)
