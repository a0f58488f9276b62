"""``python -m mlstate``: the command line."""

from mlstate.cli import main

if __name__ == "__main__":
    main()
