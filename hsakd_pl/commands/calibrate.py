"""Choose the temperature of a student's probabilities, and its early exits, on validation images.

calibration.json next to the checkpoint keeps them; predict uses it, and export copies it. The images are those that the
run held out of its training split (--data.init_args.val_fraction): thresholds chosen on test images flatter when they
are tested there, and images that trained the network are nearly always right. Options of the data, as for fit, name
other data.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command; all others are options of ``fit`` for the data."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run, or a checkpoint")
    parser.add_argument("--checkpoint", default="last", help="last, best or a path (default: last)")
    parser.add_argument(
        "--target-accuracy", type=float, metavar="FRACTION", help="exit early, as cheaply as this accuracy allows"
    )
    parser.add_argument(
        "--target-macs",
        type=float,
        metavar="NUMBER",
        help="exit early, as accurately as this mean of multiply-adds per image allows",
    )
    parser.add_argument("--peer", type=int, metavar="NUMBER", help="peer, from 1 (default: the most accurate one)")
    parser.set_defaults(fit_options=[])


def run(options: Namespace) -> None:
    """Calibrate, then print what was chosen."""
    from hsakd_pl.commands.export import data_of
    from hsakd_pl.cpu.threads import share_cores
    from hsakd_pl.errors import UsageError, counted
    from hsakd_pl.export.calibrate import calibrate
    from hsakd_pl.files import local_path
    from hsakd_pl.files.escaping import show
    from hsakd_pl.records.summary import aligned
    from hsakd_pl.runs.checkpoints import find_checkpoint

    share_cores()
    source = local_path("RUN", options.run)
    checkpoint = find_checkpoint(options.checkpoint, source) if source.is_dir() else source
    data = data_of(checkpoint.parent, options.fit_options)
    if data is None:
        raise UsageError("calibrate: it needs validation images: name the data, as for fit")
    path, calibration = calibrate(checkpoint, data, options.target_accuracy, options.target_macs, options.peer)
    before, after = calibration.nll
    lines = [
        ("images", f"{counted(calibration.images, 'image')}: {calibration.split}"),
        ("temperature", f"{calibration.temperature:g} (negative log-likelihood {before:.4f}, then {after:.4f})"),
    ]
    if calibration.exits is not None:
        lines.append(("exits", f"{calibration.exits}, for {calibration.exits.target}"))
    lines.append(("file", str(path)))
    show(aligned(lines))
