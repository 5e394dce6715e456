"""``python -m hsakd_pl`` is ``hsakd``."""

import os
import sys

if __name__ == "__main__":
    if not getattr(sys.flags, "safe_path", False) and sys.path[0] == os.path.abspath(""):
        del sys.path[0]  # Python puts the working folder first, with any file there that is named like a module

    from hsakd_pl.cli.main import main

    main()
