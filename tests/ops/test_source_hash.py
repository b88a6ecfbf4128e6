"""A kernel's hash changes with what the compiler sees of it, and with nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from vidgen.ops import source_hash
from vidgen.ops.source_hash import cuda_hash, hashes_in_cpp, strip_cpp, strip_python, triton_hash

PYTHON = '''"""Words."""
from . import helper
from .tiles import rule  # why


def kernel(x):
    """More words,
    on two lines."""
    # a comment
    name = f"# {x!r}"

    return name, "# no comment", """a
# string"""
'''


def test_python_is_stripped_of_words_and_of_nothing_else():
    assert strip_python(PYTHON).splitlines() == [
        "from . import helper",
        "from .tiles import rule",
        "def kernel(x):",
        '    name = f"# {x!r}"',
        '    return name, "# no comment", """a',
        '# string"""',
    ]


def test_cpp_is_stripped_of_comments_and_of_nothing_else():
    source = 'int a;  // one\n/* two\n lines */ int   b = \'"\';\nauto c = "// no /* comment", d = R"(// raw)";\n'
    assert strip_cpp(source).splitlines() == [
        "int a;",
        "int b = '\"';",
        'auto c = "// no /* comment", d = R"(// raw)";',
    ]


@pytest.fixture
def kernels(tmp_path):
    for name, text in {"op": PYTHON, "helper": "A = 1\n", "tiles": "from .deep import B\n", "deep": "B = 1\n"}.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "stranger.py").write_text("C = 1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "counts"), [("op", True), ("helper", True), ("tiles", True), ("deep", True), ("stranger", False)]
)
def test_a_triton_hash_covers_what_the_kernel_imports(kernels, name, counts):
    before = triton_hash(kernels, "op")
    path = kernels / f"{name}.py"
    path.write_text(path.read_text() + "\n\n# words\n")
    assert triton_hash(kernels, "op") == before
    path.write_text(path.read_text() + "D = 2\n")
    assert (triton_hash(kernels, "op") != before) == counts


@pytest.fixture
def csrc(tmp_path):
    for folder in ("cuda", "bind"):
        (tmp_path / folder).mkdir()
    (tmp_path / "cuda" / "op.cu").write_text('#include "cuda/op.h"\n#include <vector>\nint kernel;\n')
    (tmp_path / "cuda" / "op.h").write_text('#include "deep.h"\n')
    (tmp_path / "cuda" / "deep.h").write_text("int deep;\n")
    (tmp_path / "bind" / "op_cuda.cpp").write_text('#include "bind/tensors.h"\n')
    (tmp_path / "bind" / "tensors.h").write_text("int tensors;\n")
    (tmp_path / "bind" / "stranger.h").write_text("int stranger;\n")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("cuda/op.cu", True),
        ("cuda/op.h", True),
        ("cuda/deep.h", True),
        ("bind/op_cuda.cpp", True),
        ("bind/tensors.h", True),
        ("bind/stranger.h", False),
    ],
)
def test_a_cuda_hash_covers_what_the_kernel_includes(csrc, name, counts):
    before = cuda_hash(csrc, "op")
    path = csrc / name
    path.write_text(path.read_text() + "// words\n\n")
    assert cuda_hash(csrc, "op") == before
    path.write_text(path.read_text() + "int more;\n")
    assert (cuda_hash(csrc, "op") != before) == counts


def test_the_build_bakes_the_hash_in(csrc, tmp_path):
    """The script that CMake calls writes C++ that gives the hash; it needs neither torch nor vidgen."""
    output = tmp_path / "hashes.cpp"
    script = Path(source_hash.__file__)
    subprocess.run([sys.executable, "-I", "-S", str(script), str(csrc), str(output)], check=True)
    assert output.read_text() == hashes_in_cpp(csrc)
    assert f'if (std::strcmp(op, "op") == 0) return "{cuda_hash(csrc, "op")}";' in output.read_text()
    assert list(tmp_path.glob("*.part")) == []
