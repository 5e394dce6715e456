"""``python -m hsakd_pl`` is ``hsakd``."""

from hsakd_pl.cli.main import main

if __name__ == "__main__":
    main()
