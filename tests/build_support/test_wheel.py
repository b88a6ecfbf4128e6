"""A wheel is all that a user gets: everything the package needs is in it, and it works far from this tree."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

PROGRAM = """
import pathlib, sys
import torch, vidgen, vidgen.kernels, vidgen.benchmarks, vidgen.cli
from vidgen import _host
assert pathlib.Path(vidgen.__file__).is_relative_to(sys.prefix), vidgen.__file__
assert "kernels" not in sys.modules and "benchmarks" not in sys.modules
x, weight = torch.randn(2, 3, 9, 7), torch.randn(5, 3, 3, 3)
drawn = vidgen.ops.masked_conv2d(x, weight, mask="A", impl="cpu")
expected = vidgen.ops.masked_conv2d(x, weight, mask="A", impl="reference")
torch.testing.assert_close(drawn, expected)
print(_host.isa())
"""


@pytest.fixture(scope="module")
def wheel(root: Path, offline: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, root]
    done = subprocess.run(build, env=offline, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    (path,) = folder.glob("vidgen-*.whl")
    return path


def test_the_kernels_run_in_a_fresh_environment_from_another_directory(
    wheel: Path, bare_venv: Path, offline: dict[str, str], tmp_path: Path
) -> None:
    python = bare_venv / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], env=offline, check=True)
    done = subprocess.run(
        [python, "-c", PROGRAM], cwd=tmp_path, env=offline, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    command = subprocess.run([bare_venv / "bin" / "vidgen", "--version"], cwd=tmp_path, env=offline, check=False)
    assert command.returncode == 0


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path, root: Path) -> None:
    """Templates, style sheets, the manifest: what setuptools does not copy is missed only on the user's machine."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "vidgen", "kernels", "benchmarks"], cwd=root, capture_output=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout, so it cannot be told which files belong to the package")
    tracked = [Path(os.fsdecode(name)) for name in listing.stdout.split(b"\0") if name]
    linked = {root / "vidgen" / "kernels", root / "vidgen" / "benchmarks"}
    expected = {
        str(path if path.parts[0] == "vidgen" else Path("vidgen") / path)
        for path in tracked
        if root / path not in linked and path.suffix != ".md"
    }
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("vidgen/")}
    assert expected - packed == set()


def test_the_wheel_holds_this_build_and_no_leftovers(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    libraries = {name for name in names if name.endswith(".so")}
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    assert libraries - {"vidgen/_C_cuda.so"} == {"vidgen/_C.so", f"vidgen/_host{suffix}"}
    assert not [name for name in names if not name.startswith(("vidgen/", "vidgen-"))]
    assert [name for name in names if name.endswith("/LICENSE")]
