"""Make lightning-bolts 0.7.0, its last release, importable on Lightning 2: import this module before ``pl_bolts``.

The optimizers, schedules, callbacks, transforms and data modules of bolts import one module that has moved since. The
command line imports this module where bolts is installed, so that configurations can name its classes. Two packages
need more of Lightning 1 and cannot be imported: ``pl_bolts.models.detection`` and ``pl_bolts.models.rl``.
"""

import sys
from importlib.util import find_spec

from lightning_utilities.core import apply_func

from hsakd_pl.errors import UsageError

if find_spec("pl_bolts") is None:
    raise UsageError(
        "lightning-bolts is not installed: pip install --no-deps lightning-bolts==0.7.0 "
        "(--no-deps, because it requires Lightning below 2)"
    )
sys.modules.setdefault("pytorch_lightning.utilities.apply_func", apply_func)
