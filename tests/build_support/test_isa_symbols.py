"""A function of one instruction set must never run in the place of another's.

An inline function or template that is instantiated in two objects is a weak symbol, and the linker keeps one of them
at will: were it the AVX-512 one, an older processor would die of an illegal instruction in code it has no reason to
reach. So whatever is compiled for an instruction set carries the name of that set.
"""

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vidgen import _host

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="reads ELF objects with nm")


def mergeable_symbols(objects: list[Path]) -> set[str]:
    """Demangled names of what the linker may merge: weak functions (W), weak data (V), unique ones (u)."""
    nm = shutil.which("nm")
    assert nm is not None, "nm (of binutils) comes with every compiler and must be there"
    listing = subprocess.run([nm, "-C", "--defined-only", *objects], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"^[0-9a-f]+ [WVu] (.+)$", listing, flags=re.MULTILINE))


@pytest.mark.parametrize("level", _host.isa_compiled())
def test_mergeable_symbols_carry_the_name_of_their_instruction_set(root: Path, level: str) -> None:
    build = root / "build" / f"cmake-{sys.implementation.cache_tag}-torch{torch.__version__}"
    objects = sorted((build / "CMakeFiles" / f"cpu_{level}.dir").rglob("*.o"))
    assert objects, f"no objects of {level} under {build}: type `make test`, which builds them"
    symbols = mergeable_symbols(objects)
    assert symbols, "no template at all in the kernels? then this test reads the wrong files"
    foreign = sorted(name for name in symbols if f"vidgen::{level}::" not in name)
    assert not foreign, f"compiled for {level}, yet mergeable with code of other instruction sets: {foreign}"


def test_such_a_symbol_is_seen_where_there_is_one(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    assert compiler is not None
    source = tmp_path / "shared.cpp"
    source.write_text(
        "namespace vidgen { inline int twice(int x) { return 2 * x; } namespace avx2 { int (*f)(int) = twice; } }"
    )
    subprocess.run([compiler, "-c", source, "-o", tmp_path / "shared.o"], check=True)
    assert mergeable_symbols([tmp_path / "shared.o"]) == {"vidgen::twice(int)"}


def test_nothing_is_compiled_for_the_machine_it_is_compiled_on(root: Path) -> None:
    """Such a build would fail, or give other bits, on the next machine that the wheel is copied to."""
    files = [root / "CMakeLists.txt", root / "setup.py", root / "Makefile", *root.glob("csrc/**/*.*")]
    native = [path for path in files if re.search(r"-m(arch|tune|cpu)=native", path.read_text())]
    assert not native
