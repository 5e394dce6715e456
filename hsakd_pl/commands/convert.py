"""Convert a data set once to a set of LitData, whose chunks are read from a folder or from cloud storage.

Options of the data, as for fit, name the source: hsakd convert FOLDER --data CLASS --data.root PATH. Files are stored
as they are, byte for byte, and images in memory as PNG. The labels and a sample of the pictures are compared with the
source before the folder appears. Train with --data LitDataModule --data.path FOLDER.
"""

from argparse import ArgumentParser, Namespace


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command; all others are options of ``fit`` for the data."""
    parser.add_argument("folder", metavar="FOLDER", help="folder to write, which must not exist")
    parser.add_argument("--chunk_mib", type=int, default=64, help="size of a chunk in MiB (default: %(default)s)")
    parser.set_defaults(fit_options=[])


def run(options: Namespace) -> None:
    """Convert, then print what was written."""
    from hsakd_pl.commands.export import data_of
    from hsakd_pl.data.convert import convert
    from hsakd_pl.errors import UsageError, counted
    from hsakd_pl.files.escaping import show
    from hsakd_pl.records.summary import aligned

    data = data_of(None, options.fit_options)
    if data is None:
        raise UsageError("convert: it needs a data set: name it with --data, as for fit")
    counts = convert(data, options.folder, options.chunk_mib)
    lines = [(name, counted(count, "image")) for name, count in counts.items()]
    show(aligned([*lines, ("folder", options.folder)]))
