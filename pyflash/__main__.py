"""`python -m pyflash info | explain | demo`."""

from __future__ import annotations

import argparse
import json
import sys

from pyflash.cli import demo, explain


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pyflash", description="What pyflash has on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("info", "versions, processor, backends and why one is missing"),
        ("explain", "operation by backend: what is served, and the reason where it is not"),
    ):
        commands.add_parser(name, help=text).add_argument("--json", action="store_true", help="for programs")
    what = "a Transformer learns real text in torch.nn, then after pyflash.replace: the same curve, faster"
    demo.add_arguments(commands.add_parser("demo", help=what, description=demo.__doc__))
    arguments = parser.parse_args(argv)
    if arguments.command == "demo":
        return demo.main(arguments)

    facts = getattr(explain, arguments.command)()
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        getattr(explain, f"print_{arguments.command}")(facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
