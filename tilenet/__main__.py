"""``python -m tilenet`` is the command."""

from tilenet.cli.main import main

main()
