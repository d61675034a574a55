"""The command line as a module: `python -m numbanet` is `numbanet`."""

from numbanet.apps.cli import main

main()
