"""What `make` promises: the torch that is there is used, nothing is done twice, and changed sources are compiled.

The real build_support/environment.py runs here on a project of one setup.py that writes down when it was called, with
pip cut off from every index: a step that wants to download fails the test.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PYPROJECT = """
[build-system]
requires = ["setuptools", "numpy"]
build-backend = "setuptools.build_meta"
[project]
name = "vidgen"
version = "0"
[project.optional-dependencies]
test = ["pytest"]
lint = ["numpy"]
[tool.setuptools]
packages = ["vidgen"]
"""

# stands in for CMake: "compiles" by copying the sources it sees, and counts how often it was asked to
SETUP = """
from pathlib import Path
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
class Build(build_ext):
    def run(self):
        root = Path(__file__).parent
        sources = "".join(path.read_text() for path in sorted(root.glob("csrc/**/*.cpp")))
        for name in ("_C.so", "_host.so"):
            (root / "vidgen" / name).write_text(sources)
        with (root / "builds").open("a") as log:
            log.write("built\\n")
    def get_outputs(self):
        return []
    def get_output_mapping(self):
        return {}
    def copy_extensions_to_source(self):
        pass
setup(ext_modules=[Extension("vidgen._host", sources=[])], cmdclass={"build_ext": Build})
"""


class Project:
    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self.root = root
        self.environment = environment

    def set_up(self, extras: str = "test") -> str:
        command = [sys.executable, "build_support/environment.py", "--extras", extras, "--torch", "no-such-torch"]
        done = subprocess.run(
            command, cwd=self.root, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def builds(self) -> int:
        return len((self.root / "builds").read_text().splitlines())

    def python(self, program: str) -> str:
        interpreter = self.root / ".venv" / "bin" / "python"
        done = subprocess.run(
            [interpreter, "-c", program], cwd="/", env=self.environment, text=True, capture_output=True, check=True
        )
        return done.stdout.strip()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, root: Path, offline: dict[str, str]) -> Project:
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(root / "build_support", folder / "build_support", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "constraints.txt").write_text("# of what this environment does not have\nno-such-package==1\n")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "setup.py").write_text(SETUP)
    (folder / "CMakeLists.txt").write_text("")
    (folder / "vidgen").mkdir()
    (folder / "vidgen" / "__init__.py").write_text("")
    (folder / "csrc" / "cpu").mkdir(parents=True)
    (folder / "csrc" / "cpu" / "a.cpp").write_text("a")
    (folder / "csrc" / "b.cpp").write_text("b")
    made = Project(folder, offline)
    made.set_up()
    return made


def test_the_torch_that_is_there_is_used_as_it_is(project: Project) -> None:
    import torch

    assert project.python("import torch; print(torch.__file__)") == torch.__file__
    assert project.python("import vidgen; print(vidgen.__file__)") == str(project.root / "vidgen" / "__init__.py")


def test_nothing_may_replace_that_torch(project: Project) -> None:
    """Every pip call runs under a file that pins it, so that no dependency can swap it for another build."""
    from importlib.metadata import version

    pins = (project.root / ".venv" / "constraints.txt").read_text().splitlines()
    assert f"torch=={version('torch')}" in pins
    assert f"numpy=={version('numpy')}" in pins
    assert "no-such-package==1" in pins


def test_a_second_call_does_nothing(project: Project) -> None:
    project.set_up()
    builds = project.builds()
    assert project.set_up() == ""
    assert project.builds() == builds


def test_extras_that_are_there_with_others_are_there(project: Project) -> None:
    project.set_up("test,lint")
    assert project.set_up("lint") == ""
    assert project.set_up("test") == ""
    assert project.set_up("") == ""


@pytest.mark.parametrize("change", ["edit", "add", "delete", "rename"])
def test_a_stale_extension_is_compiled_again_and_once(project: Project, change: str) -> None:
    project.set_up()
    builds = project.builds()
    source = project.root / "csrc" / "cpu" / "a.cpp"
    other = project.root / "csrc" / "cpu" / f"a_{change}.cpp"  # next to a.cpp also in the order of names
    if change == "edit":
        source.write_text(source.read_text() + "edited")
    elif change == "rename":
        source.rename(other)
    elif change == "add":
        other.write_text("c")
    else:
        (project.root / "csrc" / "b.cpp").unlink()
    project.set_up()
    assert project.builds() == builds + 1
    assert project.set_up() == ""
    if change == "rename":
        other.rename(source)


def test_touching_a_file_compiles_nothing(project: Project) -> None:
    project.set_up()
    (project.root / "csrc" / "cpu" / "a.cpp").touch()
    assert project.set_up() == ""


@pytest.mark.parametrize("name", ["CMakeLists.txt", "setup.py"])
def test_the_build_files_count_as_sources(project: Project, name: str) -> None:
    project.set_up()
    builds = project.builds()
    path = project.root / name
    path.write_text(path.read_text() + "\n# changed\n")
    project.set_up()
    assert project.builds() == builds + 1


def test_a_deleted_extension_is_compiled_again(project: Project) -> None:
    project.set_up()
    (project.root / "vidgen" / "_C.so").unlink()
    project.set_up()
    assert (project.root / "vidgen" / "_C.so").exists()


def test_changed_dependencies_are_installed(project: Project) -> None:
    project.set_up()
    text = (project.root / "pyproject.toml").read_text()
    (project.root / "pyproject.toml").write_text(text.replace('test = ["pytest"]', 'test = ["pytest", "numpy"]'))
    assert "installing" in project.set_up()
    assert project.set_up() == ""


def test_what_the_build_lacks_is_the_last_thing_said(project: Project, tmp_path: Path) -> None:
    (project.root / "csrc" / "c.cpp").write_text("needs a compiler")
    command = [sys.executable, "build_support/environment.py", "--extras", "test", "--torch", "no-such-torch"]
    without_compiler = {**project.environment, "PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=project.root, env=without_compiler, text=True, capture_output=True, check=False)
    assert done.returncode != 0
    assert done.stderr.startswith("vidgen: there is no C++ compiler on the PATH: type ")
    assert done.stderr.count("\n") == 1


def test_an_environment_that_moved_is_made_anew(project: Project) -> None:
    """Editable installs hold absolute paths: a moved tree would import the code of the old place."""
    project.set_up()
    moved = Project(project.root.with_name("moved"), project.environment)
    project.root.rename(moved.root)
    try:
        assert "making .venv" in moved.set_up()
        assert moved.python("import vidgen; print(vidgen.__file__)") == str(moved.root / "vidgen" / "__init__.py")
    finally:
        moved.root.rename(project.root)
