"""Run a script that uses InteractContext, with antgo's own import line: `python -m tools.antgo run SCRIPT [ARGS]`."""

from __future__ import annotations

import runpy
import sys
import types
from collections.abc import Sequence
from pathlib import Path

from common.cli import FlagParser, run_program
from data_loader.samples import current_folder
from datasets.errors import DatasetError


class ScriptVerb:
    """The command; what follows the script's name is the script's."""

    name = "run"

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run a script; return its exit code. What it raises is its own, but for mistakes of the user."""
        words = list(sys.argv[1:] if argv is None else argv)
        parser = FlagParser(prog="python -m tools.antgo run", description=(__doc__ or "").splitlines()[0])
        parser.add_argument("script", type=Path, help="a Python file; what follows is for it")
        args = parser.parse_args(words[:1])
        return run_program(self.name, lambda: run_script(args.script, words[1:]))


def run_script(script: Path, words: Sequence[str]) -> int:
    """Run a Python file as the main program, with words as its arguments. Raises DatasetError where it is not there."""
    if not script.is_file():
        raise DatasetError(f"{script}: the script is not there{current_folder(str(script))}")
    from review import context

    package = types.ModuleType("antgo")
    module = types.ModuleType("antgo.interactcontext")
    module.InteractContext = context.InteractContext  # type: ignore[attr-defined]
    package.interactcontext = module  # type: ignore[attr-defined]
    sys.modules |= {"antgo": package, "antgo.interactcontext": module}
    sys.argv = [str(script), *words]
    sys.path.insert(0, str(script.resolve().parent))
    runpy.run_path(str(script), run_name="__main__")
    return 0


VERB = ScriptVerb()
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
