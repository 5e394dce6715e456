"""Run every command where folders cannot be synced and files cannot be locked: it warns once and continues."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from attacks.material import SHORT, TABLE, config, pictures

SOURCE = Path(__file__).with_name("refusing.c")
REFUSALS = {
    "REFUSED_FSYNC": (errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF, errno.EACCES),
    "REFUSED_LOCK": (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP),
}


def attack(folder: Path, count: int, seed: int) -> Iterator[str]:
    """Yield the faults of each command under each kind of refusal, and of a fit under each error code."""
    library = folder / "refusing.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    images = pictures(folder / "pictures")
    for name, codes in REFUSALS.items():
        for code in codes:
            place = folder / f"{name}{code}"
            place.mkdir()
            (place / "config.yaml").write_text(json.dumps(config(seed)))
            (place / "mine.csv").write_text(TABLE)
            environment = os.environ | {"LD_PRELOAD": str(library), name: str(code)}
            commands = _commands(images)
            for arguments in commands if code == codes[0] else commands[:1]:
                done = subprocess.run(
                    [sys.executable, "-m", "hsakd_pl", *arguments],
                    cwd=place,
                    env=environment,
                    capture_output=True,
                    text=True,
                )
                printed = done.stdout + done.stderr
                if done.returncode or "Traceback" in printed:
                    yield f"{name} {errno.errorcode[code]}: {' '.join(arguments)}: {done.returncode}\n{printed[-800:]}"
            print(f"{name} {errno.errorcode[code]}: done", flush=True)


def _commands(images: Path) -> list[list[str]]:
    placed = ["--config", "config.yaml", "--trainer.default_root_dir", "run"]
    return [
        ["fit", *placed],
        ["fit", *placed, "--trainer.max_epochs", "2", "--ckpt_path", "last"],
        ["test", *placed, "--ckpt_path", "last"],
        ["export", "run", "student", "--formats", "safetensors"],
        ["predict", "run", str(images), "--num_workers", "0"],
        ["report", "run", "--html", "page.html"],
        ["bench", "mine.csv", "--folder", "bench", "--methods", "teacher", *SHORT],
    ]
