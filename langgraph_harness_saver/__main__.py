"""`python -m langgraph_harness_saver ddl postgres`: print what makes the tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from langgraph_harness_saver.stores.sql import ddl


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m langgraph_harness_saver", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    printing = commands.add_parser("ddl", help="print the SQL that makes the tables, for your own migrations")
    printing.add_argument("dialect", choices=["postgres"])
    printing.add_argument("--schema", default="public", help="where the tables are to live (public)")
    printing.add_argument("--after", type=int, default=0, help="the last migration that was run (0)")
    options = parser.parse_args(arguments)
    sys.stdout.write(ddl(options.schema, options.after))
    return 0


if __name__ == "__main__":
    sys.exit(main())
