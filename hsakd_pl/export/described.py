"""Describe the fields of the files of an export. docs/files.md is written from this; a test compares it with one."""

from hsakd_pl.files.described import Field, FileFormat, inside
from hsakd_pl.records.described import COUNT, DIGEST, FRACTION, SHA256

CALIBRATION_FIELDS = {
    "weights_digest": Field("digest of the checkpoint's weights, which it belongs to", SHA256),
    "images": Field("validation images", COUNT),
    "split": Field("these images, in words"),
    "temperature": Field("divisor of the logits of the class head", "number"),
    "nll": Field("negative log-likelihood before and after", "list of two numbers, in nats"),
    "exits": Field("in place of its fields", "null", "no target"),
    "exits.kind": Field("`early_exit`, through the branches, or `cascade`, through ensembles", when="a target"),
    "exits.threshold": Field("least probability of the first class at which an image leaves", FRACTION, "a target"),
    "exits.temperatures": Field("temperature of each exit", "list of numbers", "a target"),
    "exits.acc": Field("accuracy on the validation images", FRACTION, "a target"),
    "exits.multiply_adds": Field("mean multiply-adds per image", "number", "a target"),
    "exits.target": Field("target that was asked for", when="a target"),
}
CALIBRATION = FileFormat(
    "calibration.json",
    "calibrate",
    "The temperature of a student's probabilities, and its early exits, next to the checkpoint.",
    CALIBRATION_FIELDS,
)
CONFIG = FileFormat(
    "config.json",
    "export",
    "What is needed to run the student.",
    {
        "network": Field("registered name, null for a network of another package"),
        "transforms": Field("transformations that `predict` compares"),
        "class_names": Field("names in the order of the logits", "list"),
        "image_size": Field("side of the images", "pixels"),
        "resize": Field("short side before the centre is cropped", "pixels"),
        "mean": Field("mean of each channel; the files subtract it themselves", "pixel values in [0, 1]"),
        "std": Field("standard deviation of each channel", "pixel values in [0, 1]"),
        "input": Field("input of `model.pt2` and `model.onnx`: `float` in [0, 1] or `uint8`"),
        "embedding": Field("the outputs are an embedding", "true", "`EmbeddingModule`"),
        "weights_digest": Field("digest of the exported weights", SHA256),
        "predictions_digest": Field("digest of the network, as in `predictions.jsonl`", DIGEST),
        "versions.<package>": Field("versions of `hsakd_pl`, `torch` and `torchvision`"),
        **inside("calibration", CALIBRATION_FIELDS, "a calibrated run"),
    },
)
EXPORT = FileFormat(
    "export.json",
    "export",
    "What was compared, quantised and measured.",
    {
        "format": Field("version of the format", COUNT),
        "hsakd_pl": Field("version of the package"),
        "files.<name>.megabytes": Field("size of the file", "10^6 bytes"),
        "files.<name>.difference": Field("largest difference of a logit from PyTorch's, null for int8", "number"),
        "compared_on": Field("images of the comparison, in words"),
        "int8": Field("in place of its fields", "null", "no int8"),
        "int8.kind": Field("`static` or `dynamic`", when="int8"),
        "int8.weights": Field("quantisation of the weights, in words", when="static int8"),
        "int8.activations": Field("quantisation of the activations, in words", when="static int8"),
        "int8.operators": Field("quantised operators of ONNX", "list", "static int8"),
        "int8.ranges": Field("how the ranges of the activations were found, or `trained`", when="static int8"),
        "int8.calibration_images": Field("images for the ranges", COUNT, "static int8 that was not trained"),
        "int8.calibrated_on": Field("these images, in words", when="static int8 that was not trained"),
        "int8.seed": Field("seed of their choice, null for a folder", COUNT, "static int8 that was not trained"),
        "measured": Field("in place of its fields", "null", "no test split"),
        "measured.rows[].file": Field("measured file", when="a test split"),
        "measured.rows[].megabytes": Field("its size", "10^6 bytes", "a test split"),
        "measured.rows[].batch_size": Field("images per call", COUNT, "a test split"),
        "measured.rows[].accuracy": Field("accuracy on the test images", FRACTION, "a test split"),
        "measured.rows[].agreement": Field("share with the class of the first file", FRACTION, "a test split"),
        "measured.rows[].images_per_second": Field("median over rounds", "images/s", "a test split"),
        "measured.rows[].times_as_fast": Field(
            "multiple of the first file's speed at this batch size", "number", "a test split"
        ),
        "measured.images": Field("test images that were classified", COUNT, "a test split"),
        "measured.split_images": Field("images of the test split", COUNT, "a test split"),
        "measured.data": Field("fingerprint of the test split", DIGEST, "a test split"),
        "measured.threads": Field("threads of the runtime", COUNT, "a test split"),
        "measured.cpu": Field("model and instructions of the CPU", when="a test split"),
        "measured.runtime": Field("library and its version", when="a test split"),
        "card_sha256": Field("SHA-256 of the model card as written, so that later edits are noticed", SHA256),
    },
)
MODELS = (
    FileFormat("README.md", "export", "The model card, with metadata for the Hugging Face Hub."),
    FileFormat(
        "model.safetensors",
        "export",
        "The weights of the network without branches, and `channel_mean` and `channel_std`, for `load_student`.",
    ),
    FileFormat(
        "branches.safetensors",
        "export",
        "The weights of the network with its branches, for the early exits of a calibrated student.",
    ),
    FileFormat(
        "model.pt2",
        "export",
        "A program of `torch.export`: images (B, C, S, S) to logits (B, N), with any B; it normalises its input.",
    ),
    FileFormat("model.onnx", "export", "The same as an ONNX graph, with the input `input` and the output `logits`."),
    FileFormat(
        "model.int8.onnx", "export", "The same, quantised to 8 bits; its input and output are floating point, or uint8."
    ),
)
FILES = (CALIBRATION, *MODELS, CONFIG, EXPORT)
