"""Send Ctrl-C to a command as soon as a file exists that it writes, and wait for its end: interrupt.py FILE COMMAND..."""

import signal
import subprocess
import sys
import time
from pathlib import Path

process = subprocess.Popen(sys.argv[2:])
while not Path(sys.argv[1]).exists() and process.poll() is None:
    time.sleep(0.1)
process.send_signal(signal.SIGINT)
print("interrupted, exit status", process.wait())
