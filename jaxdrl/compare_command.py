"""`jaxdrl compare`: several runs on one page."""

from collections.abc import Sequence
from pathlib import Path

from jaxdrl.command_parser import CommandParser
from jaxdrl.errors import UserError

COMPARE_HELP = """usage: jaxdrl compare RUN RUN ... [--out=FILE.html]

Compares the runs in two or more workdirs, finished or not, on one self-contained page: a table of the runs with the keys in
which they differ and their distances; images of the same noise side by side; distances, precision and coverage, drift
statistics and rewards against lambda (posttrain.reward_scale) where it differs, otherwise against the only number that does;
spectral gates; curves of post-training; where the time went. Nothing is sampled or measured again: what a run lacks is said.
docs/comparing.md explains the page.

  --out   default compare.html

The runs must have the same data. Runs with other seeds are compared too, but images stand side by side only where the noise
is the same.

examples
  for l in 0.3 1 3; do jaxdrl run --config=configs/drl_digits.py --workdir=runs/lambda$l --config.posttrain.reward_scale=$l; done
  jaxdrl compare runs/lambda0.3 runs/lambda1 runs/lambda3 --out=lambda.html
"""


def run(arguments: Sequence[str]) -> int:
    """Runs the command.

    Args:
        arguments: After the command's name.

    Returns:
        0.

    Raises:
        UserError: If a folder holds no run, fewer than two are given, their data differ, or the page cannot be written.
    """
    parser = CommandParser("compare")
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--out", type=Path, default=Path("compare.html"))
    options = parser.parse_intermixed_args(list(arguments))
    if options.out.suffix not in (".html", ".htm"):
        raise UserError(f"--out must name a .html file, got {str(options.out)!r}")
    from jaxdrl.report import compare_page
    from jaxdrl.report import runs as folders
    from jaxdrl.training.workdir import disk_errors
    from jaxdrl.weights.files import write_atomically

    found = folders.read(options.runs)
    page = compare_page.render(found)
    with disk_errors(options.out):
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out, page.encode())
    print(f"{compare_page.plain(found)}\n\n{options.out}")
    return 0
