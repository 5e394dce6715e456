"""``python main.py COMMAND`` is ``hsakd COMMAND``: see ``python main.py --help``."""

from hsakd_pl.cli.main import main

if __name__ == "__main__":
    main()
