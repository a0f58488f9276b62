"""Fuzzing by atheris, led by the code that an input reaches (``pip install 'mlstate[torture]'``).

    python -m tests.torture.fuzz.guided TARGET SECONDS [FOLDER]

Inputs that reach something new are kept in the folder; begin with it to go on.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Fuzz one target for a time."""
    import atheris

    with atheris.instrument_imports(include=["mlstate"]):
        from tests.torture.fuzz.check import Rules, try_input
        from tests.torture.fuzz.mutate import CORPUS

    target, seconds, *folders = sys.argv[1:]
    rules = Rules()
    arguments = [
        *(sys.argv[0], f"-max_total_time={seconds}", "-rss_limit_mb=0", "-timeout=30"),
        *("-print_final_stats=1", "-max_len=65536", *folders, str(CORPUS / target)),
    ]
    atheris.Setup(arguments, lambda data: try_input(target, data, rules) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
