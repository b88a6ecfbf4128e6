"""The `vidgen` command. A subcommand is one typed function; its module is imported only when it is called."""

from __future__ import annotations

import importlib
import os
import re
import sys

#: command -> (module, function, one line)
COMMANDS = {
    "info": ("vidgen.info", "info", "versions, instruction set, measured peaks, ops and their backends"),
    "bench": ("vidgen.benchmarks.command", "bench", "measure the ops against eager PyTorch on this machine"),
    "report": ("vidgen.report.command", "report", "train, sample and measure; write it all to one HTML page"),
    "train": ("vidgen.train.command", "train", "train a model"),
    "sample": ("vidgen.sampling.command", "sample", "draw images from a checkpoint"),
    "flow": ("vidgen.extraction.command", "flow", "dense optical flow of whole videos"),
    "layers": ("vidgen.models.command", "layers", "a model's layers: sizes, receptive fields, parameters, arithmetic"),
}


def _overview() -> str:
    lines = ["usage: vidgen COMMAND [options]", "", "commands:"]
    lines += [f"  {name:<8} {line}" for name, (_, _, line) in COMMANDS.items()]
    lines += ["", "vidgen COMMAND --help shows a command's options; vidgen --version the version."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status (2 for a wrong call, 130 after Ctrl-C, 141 without a reader)."""
    try:
        status = _run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # who reads our lines has seen enough (`| head`); what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_overview())
        return 0 if args else 2
    if args[0] == "--version":
        import vidgen

        print(vidgen.__version__)
        return 0
    if args[0] not in COMMANDS:
        print(f"vidgen: COMMAND must be one of {', '.join(COMMANDS)}, got {args[0]!r}", file=sys.stderr)
        return 2
    try:
        import tyro
    except ImportError:
        print("vidgen: the command line needs tyro: type `pip install 'vidgen[cli]'`", file=sys.stderr)
        return 2
    module, name, _ = COMMANDS[args[0]]
    try:
        function = getattr(importlib.import_module(module), name)
        # tyro names a one-letter parameter --n; people type -n
        options = [f"-{arg}" if re.fullmatch(r"-[a-gi-z]", arg) else arg for arg in args[1:]]
        status = tyro.cli(function, prog=f"vidgen {args[0]}", args=options)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, FileNotFoundError, ImportError, RuntimeError) as error:
        print(f"vidgen {args[0]}: {error}", file=sys.stderr)
        return 1
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    raise SystemExit(main())
