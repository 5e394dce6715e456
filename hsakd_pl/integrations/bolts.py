"""Makes lightning-bolts 0.7.0, its last release, importable on Lightning 2: import this before ``pl_bolts``.

Its optimizers, schedules, callbacks, transforms and data modules ask for one module that has moved since; the command
line imports this where bolts is installed, so that a configuration may name what is in it. Two of its packages need
more of Lightning 1 and stay out of reach: ``pl_bolts.models.detection`` and ``pl_bolts.models.rl``.
"""

import sys
from importlib.util import find_spec

from lightning_utilities.core import apply_func

from hsakd_pl.errors import UsageError

if find_spec("pl_bolts") is None:
    raise UsageError(
        "lightning-bolts is not installed: pip install --no-deps lightning-bolts==0.7.0 "
        "(--no-deps, because it asks for a Lightning below 2)"
    )
sys.modules.setdefault("pytorch_lightning.utilities.apply_func", apply_func)
