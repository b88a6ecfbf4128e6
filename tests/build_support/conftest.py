"""build_support/ is no package (it runs before anything is installed), so its modules are loaded by path."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"build_support_{name}", ROOT / "build_support" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def preflight() -> ModuleType:
    return load("preflight")


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def offline() -> dict[str, str]:
    """An environment in which pip cannot download anything: what these tests install must be there already."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV"))}
    return {**kept, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture(scope="session")
def bare_venv(tmp_path_factory: pytest.TempPathFactory, offline: dict[str, str]) -> Path:
    """A fresh virtual environment that sees the packages of this one (torch!) but not its editable vidgen."""
    venv = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", venv], check=True, env=offline)
    (packages,) = venv.glob("lib/python*/site-packages")
    sites = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "inherited.pth").write_text("".join(f"{path}\n" for path in sites))
    return venv
