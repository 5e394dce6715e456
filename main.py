"""``python main.py COMMAND`` is ``hsakd COMMAND``: see ``python main.py --help``."""

from hsakd_pl.runs.cli import main

if __name__ == "__main__":
    main()
