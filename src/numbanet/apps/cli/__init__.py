"""The command line: `app` has the commands, `experiment` what they do, `options` checks options."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        import click  # noqa: F401
    except ImportError:
        print("numbanet: the command line needs click; pip install numbanet[cli]", file=sys.stderr)
        sys.exit(2)
    from numbanet.apps.cli.app import cli

    cli(prog_name="numbanet")
