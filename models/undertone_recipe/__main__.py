"""Command line of the recipe: `python -m undertone_recipe COMMAND`; `--help` lists the commands."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module

from .commands import COMMANDS, module_of
from .config import ConfigError

PROGRAM = "python -m undertone_recipe"


def main(given: list[str] | None = None) -> None:
    """Runs the command named by the first argument; exits with a message on anything that is wrong with what was given."""
    listed = "\n".join(f"  {name:15}{what}" for name, what in COMMANDS.items())
    p = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Training recipe of the undertone codec.",
        epilog=f"commands (`COMMAND --help` says more):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("command", choices=tuple(COMMANDS), metavar="COMMAND")
    p.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    chosen = p.parse_args(given)
    # Before PyTorch is imported: idle threads sleep instead of spinning beside the other work of the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command = import_module(module_of(chosen.command))
    parser = argparse.ArgumentParser(prog=f"{PROGRAM} {chosen.command}", description=command.__doc__)
    command.arguments(parser)
    args = parser.parse_args(chosen.arguments)
    import torch

    torch.set_num_threads(getattr(args, "threads", 1))
    try:
        command.run(args)
    except (OSError, ConfigError) as e:
        sys.exit(f"{chosen.command}: {e}")


if __name__ == "__main__":
    main()
