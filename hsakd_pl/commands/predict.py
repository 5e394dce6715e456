"""Classify images with a run, a checkpoint or an exported student: hsakd predict SOURCE IMAGES.

Neither a configuration nor training images are needed. --runtime runs model.onnx of an export in onnxruntime or
OpenVINO; the name of another of its files, such as student/model.int8.onnx, as SOURCE runs that one. With options
alone, as in hsakd predict --config FILE, the command takes the options of fit.
"""

from argparse import ArgumentParser, Namespace

BATCH_SIZE = 64
TOP_CLASSES = 5  # of an image in predictions.jsonl


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "source", metavar="SOURCE", help="folder of a run, a checkpoint, an export, or the id of an export on the hub"
    )
    parser.add_argument(
        "images", metavar="IMAGES", nargs="+", help="folders of images, including those in subfolders, or image files"
    )
    parser.add_argument("--folder", default=".", help="where predictions.csv and predictions.jsonl go (default: here)")
    parser.add_argument(
        "--runtime", default="torch", help="torch (default), or for an export onnxruntime or openvino, on the CPU"
    )
    parser.add_argument("--revision", help="branch, tag or commit of an export on the hub")
    parser.add_argument(
        "--top", type=int, default=TOP_CLASSES, help="classes per image in predictions.jsonl (default: %(default)s)"
    )
    parser.add_argument("--batch_size", type=int, help=f"images per batch (default: {BATCH_SIZE}, fewer if large)")
    parser.add_argument("--num_workers", type=int, help="processes that open images (default: chosen by CPU count)")
    parser.add_argument(
        "--on_error", default="row", help="for broken images: row, an empty row, or raise (default: row)"
    )
    parser.add_argument("--accelerator", default="auto", help="auto, cpu, gpu or mps (default: auto)")
    parser.add_argument(
        "--network", metavar="NAME", help="name or import path, if the source does not know its network"
    )


def run(options: Namespace) -> None:
    """Predict, and print where the predictions are."""
    from hsakd_pl.errors import UsageError
    from hsakd_pl.files.runtimes import check_runtime

    check_runtime(options.runtime)
    runs_graph = options.runtime != "torch" or options.source.endswith(".onnx")
    if runs_graph and options.accelerator not in ("auto", "cpu"):
        raise UsageError(f"accelerator {options.accelerator} has no effect: ONNX files run on the CPU, leave it out")
    source = here(options.source, options.revision, options.runtime)

    import pytorch_lightning as pl

    from hsakd_pl.cpu.threads import share_cores
    from hsakd_pl.data import ImageDataModule
    from hsakd_pl.data.limits import images_per_pass
    from hsakd_pl.export.predictor import find_source
    from hsakd_pl.files.lock import sole_writer
    from hsakd_pl.records.predictions import PredictionWriter
    from hsakd_pl.records.progress import Progress
    from hsakd_pl.runs.accelerator import check_accelerator

    check_accelerator(options.accelerator, "accelerator")
    share_cores()
    found = find_source(source, options.runtime, options.network)
    batch_size = options.batch_size
    if batch_size is None:
        batch_size = images_per_pass(BATCH_SIZE, found.description.image_size)
    data = ImageDataModule(
        predict_dir=options.images,
        batch_size=batch_size,
        num_workers=options.num_workers,
        on_error=options.on_error,
    )
    data.num_classes = len(found.description.class_names)
    data.adopt(found.description)
    if runs_graph:  # which normalises its input itself
        channels = found.description.channels
        data.use_statistics([0.0] * channels, [1.0] * channels)
    trainer = pl.Trainer(
        accelerator="cpu" if runs_graph else options.accelerator,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[PredictionWriter(options.folder, options.top, "folder", found.how), Progress()],
    )
    with sole_writer(options.folder, "name another folder with --folder"):
        trainer.predict(found.predictor, data, return_predictions=False)


def here(source: str, revision: str | None = None, runtime: str = "torch") -> str:
    """Return a source that exists here, or the folder that an export was downloaded to from the hub.

    Without PyTorch, whose import takes longer than to notice a wrong name.
    """
    from hsakd_pl.errors import UsageError
    from hsakd_pl.files import local_path, naming
    from hsakd_pl.files.escaping import show
    from hsakd_pl.files.hub import GRAPH_FILE, download

    path = local_path("SOURCE", source)
    with naming(path):
        exists = path.exists()
    if exists:
        if revision is not None:
            raise UsageError(f"revision: {source} exists here, it is not a model on the hub: leave revision out")
        return source
    folder = download(source, files=() if runtime == "torch" else (GRAPH_FILE,), revision=revision)
    show(f"{source} is at commit {folder.name}")  # the hub's client names folders by commits
    return str(folder)
