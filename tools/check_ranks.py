"""Can these arguments of train_net.py run on this many processes? tools/train.sh asks first.

    python tools/check_ranks.py PROCESSES --config-file CONFIG [key=value ...]

One process finds out in seconds, and says in one line, what all of them would fail on.
"""

import projects.SegFormer.engine.process  # noqa: F401

from projects.SegFormer.engine import command_line
from projects.SegFormer.engine.config import load_config
from projects.SegFormer.engine.parallel import plan_ranks
from projects.SegFormer.engine.train_arguments import parse
from projects.SegFormer.modeling.errors import InputError
from projects.SegFormer.tools.train_net import overrides_of


def main(arguments: list[str]) -> None:
    """Raises InputError."""
    if not arguments[:1] or not arguments[0].isdecimal():
        raise InputError("usage: check_ranks.py PROCESSES --config-file CONFIG [key=value ...]")
    args = parse(arguments[1:])
    plan_ranks(load_config(args.config_file, overrides_of(args)), int(arguments[0]))


if __name__ == "__main__":
    command_line.run(main)
