"""Makes `.venv` and brings it up to date; every target of the Makefile starts here.

    python3 build_support/environment.py --extras test --torch torch==2.13.0

What is done, each step only where something changed since the last time:

1. `.venv` is made by the interpreter that runs this file. Where that interpreter has a usable torch, `.venv` sees its
   packages, so that this very torch is used and none is downloaded.
2. Where no usable torch is to be seen, the one named is installed, before anything else: no later step may let
   pip choose a torch, which would be a download of gigabytes or a swap of the user's build for another.
3. The build tools and vidgen with the extras asked for, editable, under constraints.txt.
4. The extension, where the hash of its sources differs from the one it was built from. A hash and not file times:
   those miss a deleted file and a checkout that goes back.

What was done is noted in `.venv/vidgen.json`. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import preflight

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("CMakeLists.txt", "setup.py", "csrc/**/*", "vidgen/ops/source_hash.py")
# installed before or together with torch, which pins some of them exactly: whatever stands there is kept
KEPT = ("torch", "triton", "numpy")


def say(text: str) -> None:
    print(f"vidgen: {text}", flush=True)


def call(*command: str | Path) -> None:
    """Runs a command from the root of the tree; if it fails, this process ends with its exit status."""
    # an inherited ninja has its script beside the interpreter it was installed for
    where = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    code = subprocess.run([str(part) for part in command], cwd=ROOT, env=where, check=False).returncode
    if code:
        say(f"stopped, because this failed: {shlex.join(str(part) for part in command)}")
        raise SystemExit(code)


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def sources_digest(root: Path) -> str:
    """Of the names and contents of everything that the extension is compiled from."""
    files = sorted(path for pattern in SOURCES for path in root.glob(pattern) if path.is_file())
    return digest([(str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest()) for path in files])


def inherited_sites() -> list[str]:
    """The package folders of the running interpreter, if a usable torch is among them.

    They reach `.venv` through a .pth file and not through --system-site-packages, because a venv made from inside
    another one would see the packages of the interpreter below both, not those of the active one.
    """
    if preflight.usable_torch() is None:
        return []
    return [path for path in sys.path if path.endswith(("site-packages", "dist-packages")) and os.path.isdir(path)]


class Environment:
    def __init__(self, venv: Path) -> None:
        self.venv = venv
        self.python = venv / "bin" / "python"
        self.note = venv / "vidgen.json"
        try:
            self.state = json.loads(self.note.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            self.state = {}

    def remember(self, key: str, value: object) -> None:
        self.state[key] = value
        temporary = self.note.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.state, indent=1))
        temporary.replace(self.note)

    def pip(self, *arguments: str | Path) -> None:
        call(self.python, "-m", "pip", "install", "--disable-pip-version-check", *arguments)

    def create(self) -> None:
        """Step 1. An environment that serves is left alone, whoever made it."""
        if Path(sys.prefix).resolve() == self.venv.resolve():
            return
        made_for = {"root": str(ROOT), "python": list(sys.version_info[:2]), "inherited": inherited_sites()}
        if self.python.exists():
            before = self.state.get("made_for")
            # a torch that .venv installed for itself also serves a caller who has none to offer
            wanted = made_for if made_for["inherited"] or not before else {**made_for, "inherited": before["inherited"]}
            if before is None or before == wanted:
                return
        say(f"making {self.venv.name} with {sys.executable}")
        shutil.rmtree(self.venv, ignore_errors=True)
        self.venv.mkdir(parents=True)
        self.state = {}
        self.remember("made_for", {**made_for, "python": "interrupted"})
        call(sys.executable, "-m", "venv", self.venv)
        if made_for["inherited"]:
            # Python 3.11 brings an old setuptools along, which would hide a newer one among the inherited
            call(self.python, "-m", "pip", "uninstall", "-q", "-q", "-y", "setuptools")
            packages = self.venv / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
            (packages / "inherited.pth").write_text("".join(f"{path}\n" for path in made_for["inherited"]))
        self.remember("made_for", made_for)

    def installed(self) -> dict[str, str]:
        """Versions of KEPT as `.venv` sees them; torch is absent where it is none that vidgen can use."""
        program = (
            "import importlib.metadata as m, json, preflight\n"
            f"found = {{d.name.lower(): d.version for d in m.distributions() if d.name.lower() in {KEPT}}}\n"
            "found['torch'] = preflight.usable_torch()\n"
            "print(json.dumps({k: v for k, v in found.items() if v}))\n"
        )
        where = {**os.environ, "PYTHONPATH": str(ROOT / "build_support")}
        answer = subprocess.run([self.python, "-c", program], env=where, stdout=subprocess.PIPE, text=True, check=True)
        return json.loads(answer.stdout)

    def install_torch(self, torch: str) -> dict[str, str]:
        """Step 2. Returns what is then installed of KEPT."""
        installed = self.installed()
        if "torch" not in installed:
            say(f"installing {torch} (a large download, once)")
            self.pip(*shlex.split(torch))
            installed = self.installed()
        if "torch" not in installed:
            raise SystemExit(f"vidgen: {torch} is not a PyTorch that vidgen can use: type `make TORCH=torch==2.13.0`.")
        return installed

    def constraints(self, installed: dict[str, str]) -> Path:
        """constraints.txt with the versions of what is there already in place of its own."""
        lines = (ROOT / "constraints.txt").read_text().splitlines()
        kept = [line for line in lines if line.split("==")[0].lower() not in installed]
        path = self.venv / "constraints.txt"
        path.write_text("\n".join([*kept, *(f"{name}=={version}" for name, version in installed.items())]) + "\n")
        return path

    def extension_digest(self, installed: dict[str, str]) -> str:
        flags = [os.environ.get(name) for name in ("CXX", "CXXFLAGS", "CMAKE_ARGS")]
        return digest(sources_digest(ROOT), installed["torch"], preflight.find_nvcc(), flags)

    def extension_is_fresh(self, current: str) -> bool:
        built = all(any((ROOT / "vidgen").glob(f"{name}.*so")) for name in ("_C", "_host"))
        return built and self.state.get("extension") == current

    def install_vidgen(self, extras: str, installed: dict[str, str]) -> None:
        """Steps 3 and 4."""
        import tomllib  # only here, because preflight first turns away interpreters that do not have it

        project = tomllib.loads((ROOT / "pyproject.toml").read_text())
        constraints = (ROOT / "constraints.txt").read_text()
        wanted = digest(project["project"], project["build-system"], constraints, installed["torch"])
        done = self.state.get("extras", {})
        extension = self.extension_digest(installed)
        asked = set(extras.split(",")) - {""}
        if not any(asked <= set(installed_extras.split(",")) for installed_extras, at in done.items() if at == wanted):
            say(f"installing vidgen[{extras}] and what it is built with, which takes some minutes the first time")
            under = ("-c", self.constraints(installed))
            self.pip("-q", *under, *project["build-system"]["requires"], *project["project"].get("dependencies", ()))
            self.compile(extension)
            self.pip("-q", "--no-build-isolation", *under, "-e", f".[{extras}]" if extras else ".")
            self.remember("extras", {**done, extras: wanted})
        elif not self.extension_is_fresh(extension):
            self.compile(extension)

    def compile(self, extension: str) -> None:
        """Apart from pip, which would hide the compiler's progress, and its errors in a page of its own."""
        say("compiling the kernels, which takes a minute or two where nothing of them is there yet")
        checks = [self.python, ROOT / "build_support" / "preflight.py", "build"]
        if subprocess.run(checks, check=False).returncode:
            raise SystemExit(1)
        call(self.python, "setup.py", "-q", "build_ext", "--inplace")
        self.remember("extension", extension)


def main() -> None:
    preflight.check(preflight.VENV)
    parser = argparse.ArgumentParser(description="Make .venv, or bring it up to date.")
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv")
    parser.add_argument("--extras", default="", help="extras of pyproject.toml, with commas between")
    parser.add_argument("--torch", required=True, help="what pip installs where no usable torch is to be seen")
    arguments = parser.parse_args()

    # two makes at once take turns; the lock is on the folder, so that no lock file is left behind
    folder = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    environment = Environment(arguments.venv.absolute())
    environment.create()
    environment.install_vidgen(arguments.extras, environment.install_torch(arguments.torch))


if __name__ == "__main__":
    main()
