"""Test that scipy.signal is imported when it is used, and not with Lightning."""

import subprocess
import sys

PROGRAM = """
import sys

from hsakd_pl.cpu.delayed import Delayed, delay_scipy_signal

delay_scipy_signal()
import torchmetrics

assert "scipy.stats" not in sys.modules
for use in ("from scipy.signal import convolve", "import scipy.signal.windows", "import scipy; scipy.signal.convolve"):
    assert type(sys.modules["scipy.signal"]) is Delayed
    exec(use)
    import scipy.signal

    assert type(scipy.signal) is not Delayed and "scipy.stats" in sys.modules
    assert scipy.signal.hamming(3).shape == scipy.signal.windows.hann(3).shape == (3,)
    for name in [name for name in sys.modules if name.startswith("scipy.signal")]:
        del sys.modules[name]
    del scipy.signal
    delay_scipy_signal()
"""


def test_scipy_signal_is_imported_by_its_first_use() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
