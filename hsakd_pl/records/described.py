"""Describe the fields of the files of a run. docs/files.md is written from this; a test compares it with a run."""

from hsakd_pl.files.described import Field, FileFormat, inside

FRACTION = "fraction in [0, 1]"
COUNT = "whole number"
SHA256 = "SHA-256, 64 hexadecimal digits"
DIGEST = "12 hexadecimal digits"
BRANCHES = "a network with branches"
PEERS = "several peers"
ENSEMBLES = "the option `ensemble`"

MACHINE = {
    "device": Field("name of the GPU, or of the CPU with its number of cores"),
    "devices": Field("number of devices (processes)", COUNT),
    "precision": Field("`trainer.precision`, such as `32-true` or `bf16-mixed`"),
    "cpu.model": Field("model of the CPU"),
    "cpu.instructions": Field("widest vector instructions of the CPU"),
    "cpu.used_by_pytorch": Field("instructions that PyTorch's own kernels use"),
    "cpu.cores": Field("CPUs that the process may use", COUNT),
    "cpu.threads": Field("PyTorch's threads", COUNT),
    "cpu.spin_count": Field("`GOMP_SPINCOUNT` in the environment, null if it is not set", "text"),
    "versions.<package>": Field("versions of `hsakd_pl`, `torch`, `torchvision` and `pytorch_lightning`"),
}
SPLIT = {
    "classes": Field("number of classes", COUNT),
    "names": Field("digest of the class names in label order", DIGEST),
    "images": Field("number of images of the whole split", COUNT),
    "labels": Field("digest of all labels in their order", DIGEST),
    "pictures": Field("digest of the pictures with their labels, whatever their order", DIGEST),
    "fingerprint": Field("digest of the five fields above", DIGEST),
}
PROTOCOL = {
    "hash": Field("digest of all that can change the result; runs with equal hashes share a row of a table", DIGEST),
    "options.<option>": Field("options of `fit` by dotted name, without seeds and paths", "as in the configuration"),
    **inside("data.<split>", SPLIT, "data of this package"),
    "data": Field("in place of its fields", "null", "data of other packages"),
    "statistics": Field("in place of its fields", "null", "other values of `data.mean`"),
    "statistics.<statistic>": Field(
        "`mean` and `std` of each channel, as measured", "pixel values in [0, 1]", "`auto` as `data.mean`"
    ),
    "found.<option>": Field("values that a tuner found, by option", "number", "a tuner"),
    "epochs": Field("`trainer.max_epochs`, null without a limit", COUNT),
    "optimizer": Field("class of the optimizer"),
    "lr": Field("its learning rate at the start", "number"),
    "momentum": Field("its momentum, null if it has none", "number"),
    "nesterov": Field("whether it uses Nesterov momentum, null if it has no such option", "true or false"),
    "weight_decay": Field("its weight decay, null if it has none", "number"),
    "batch_size": Field("labelled images per step, over all devices", COUNT),
    "compared_images": Field("images that a loss compares at once, null for losses of single images", COUNT),
    "views": Field("passes of each image through the network in a step", COUNT),
    "augmentation": Field("augmentation of training images, in words"),
    "head": Field("outputs that the accuracy is that of, in words"),
    "validated_on": Field("images of the validation, in words"),
    "limited.<option>": Field("limits on batches or steps that had an effect", "number", "such a limit"),
    "weights_sha256": Field("SHA-256 of `model.weights`, or `random`, or the digest of published ones"),
    "teacher_sha256": Field("the same of `model.teacher_weights`"),
    "projection_sha256": Field("the same of `model.projection_weights`", when="`SSKDModule`"),
    "cost_sha256": Field("SHA-256 of `model.cost_file`", SHA256, "`cost_file` of `WKDModule`"),
    "teacher_acc": Field("accuracy that the teacher's file states, null if it states none", FRACTION),
    "teacher_inputs.<option>": Field("normalisation and size of the teacher's images", when="a file that states them"),
    "devices": Field("number of devices", COUNT),
    "precision": Field("`trainer.precision`"),
}
RESULT = FileFormat(
    "result.json",
    "fit",
    "The result of a run. It is written after every epoch and, with `finished`, at the end.",
    {
        "recipe": Field("name of the recipe if the configuration is one of the paper's, else null"),
        "config": Field("configuration files", "list of paths"),
        "seed": Field("`seed_everything`", COUNT),
        "data_seed": Field("`data.seed`, null for that of `seed_everything`", COUNT),
        "finished": Field("whether the run took its planned steps or was stopped early", "true or false"),
        "epochs": Field("complete epochs", COUNT),
        "steps": Field("optimizer steps", COUNT),
        "planned_steps": Field("optimizer steps that were planned, null without a limit", COUNT),
        "last_val_acc": Field("accuracy of the last validation: the result", FRACTION),
        "last_val_step": Field("optimizer step of the last validation", COUNT),
        "best_val_acc": Field("best accuracy of a validation", FRACTION),
        "best_epoch": Field("epoch of that validation, from 1", COUNT),
        "weights_digest": Field("digest of the weights in `last.ckpt`, null while the run is unfinished", SHA256),
        "best_weights_digest": Field("digest of the weights in `best.ckpt`", SHA256),
        "metrics.<metric>": Field("last value of each metric of [`metrics.csv`](#metricscsv)", "as there"),
        **inside("protocol", PROTOCOL),
        "seconds": Field("wall-clock time of training, over all starts", "seconds"),
        "device_hours": Field("the same times the number of devices", "hours"),
        "images_per_second": Field("training images, each counted once whatever its views, of all devices", "images/s"),
        "resumes": Field("number of times that the run was resumed", COUNT),
        "parameters.trained": Field("trained parameters, with branches and parts of a method", COUNT),
        "parameters.deployed": Field("parameters of each network without its branches", "list of whole numbers"),
        "multiply_adds.trained": Field("multiply-adds of a training pass for an image, with all its views", COUNT),
        "multiply_adds.deployed": Field(
            "multiply-adds for an image of each network without branches", "list of numbers"
        ),
        "multiply_adds": Field("in place of its fields", "null", "networks or data of other packages"),
        **MACHINE,
        "commit": Field("commit of the package's repository, with `-dirty` after changes; null outside of one"),
        "teacher_sha256": Field("SHA-256 of the teacher's weight file, null without one", SHA256),
        "changes": Field("in place of its entries", "empty list", "no changes"),
        "changes[].option": Field("option that a resumed run changed", when="changes"),
        "changes[].from": Field("its value before", "as in the configuration", "changes"),
        "changes[].to": Field("its value afterwards", "as in the configuration", "changes"),
        "changes[].epoch": Field("complete epochs before the change", COUNT, "changes"),
        "changes[].step": Field("optimizer steps before the change", COUNT, "changes"),
    },
)
ENSEMBLE = {
    "acc": Field("accuracy", FRACTION, ENSEMBLES),
    "nll": Field("mean negative log-likelihood", "nats", ENSEMBLES),
    "ece": Field("expected calibration error", FRACTION, ENSEMBLES),
    "multiply_adds": Field("multiply-adds per image", COUNT, ENSEMBLES),
}
EXIT = {
    "threshold": Field("least probability of the first class at which an image leaves", FRACTION, ENSEMBLES),
    "acc": Field("accuracy", FRACTION, ENSEMBLES),
    "multiply_adds": Field("mean multiply-adds per image", COUNT, ENSEMBLES),
    "left": Field("share of the images that leaves at each exit", "list of fractions", ENSEMBLES),
}
TEST = FileFormat(
    "test.json",
    "test",
    "A test of the run's last weights, or the newest one if these were not tested. Tests of other weights are kept as "
    "`test_<digest>.json`.",
    {
        "format": Field("version of the format", COUNT),
        "checkpoint": Field("path of the tested checkpoint or weight file"),
        "epoch": Field("epoch of the checkpoint, from 1; null for a weight file", COUNT),
        "sha256": Field("SHA-256 of the file", SHA256),
        "weights_digest": Field("digest of the weights, as in `result.json`", SHA256),
        "split": Field("`test`"),
        "data": Field("fingerprint of the test split, null for data of other packages", DIGEST),
        "images": Field("tested images", COUNT),
        "split_images": Field("images of the whole split, null if that is not known", COUNT),
        "limited.limit_test_batches": Field("`trainer.limit_test_batches`", "number", "such a limit"),
        "acc": Field("accuracy of the class head on untransformed images; with peers their mean", FRACTION),
        "acc_top5": Field("the label is among the five most probable classes", FRACTION, "more than five classes"),
        "branch<number>_class": Field("class accuracy of a branch, over all transformations", FRACTION, BRANCHES),
        "branch<number>_class_top5": Field("its top-5 accuracy", FRACTION, BRANCHES),
        "branch<number>_joint": Field("accuracy of the joint label of a branch", FRACTION, BRANCHES),
        "branch<number>_joint_top5": Field("its top-5 accuracy", FRACTION, BRANCHES),
        "linear_acc": Field("accuracy of a linear probe by least squares", FRACTION, "`EmbeddingModule`"),
        "nll": Field("mean negative log-likelihood of the class head", "nats"),
        "ece": Field("expected calibration error of the class head, in 15 bins", FRACTION),
        "peer<number>_<metric>": Field("metrics of each peer", "as above", PEERS),
        "ensemble_<metric>": Field("metrics of the mean of the peers' logits", "as above", PEERS),
        "seconds": Field("wall-clock time of the test", "seconds"),
        **MACHINE,
        **inside("ensemble.<ensemble>", ENSEMBLE),
        **inside("early_exit[]", EXIT),
        **inside("cascade[]", EXIT),
    },
)
DETAILS = FileFormat(
    "test_details.json",
    "test",
    "What a page of the report draws of a test.",
    {
        "confused": Field(
            "most confused pairs", "lists of label, predicted label and number of images, over all peers"
        ),
        "reliability": Field(
            "bins of the probability of the predicted class", "lists of images, mean probability and accuracy, or null"
        ),
        "embedding.method": Field("projection of the embeddings to two dimensions"),
        "embedding.points": Field("about 1,000 embeddings", "pairs of coordinates"),
        "embedding.labels": Field("their labels", "list of whole numbers"),
        "embedding": Field("in place of its fields", "null", "networks without embeddings"),
        "example.label": Field("label of one test image", COUNT),
        "example.transforms": Field("transformations, in words"),
        "example.pictures": Field("the image under each transformation", "PNG in base64"),
        "example.heads.<head>": Field("most probable classes of each head", "by transformation, label and probability"),
        "example": Field("in place of its fields", "null", "`EmbeddingModule`"),
        "class_names": Field("names in label order, null if they are not known", "list"),
    },
)
HISTORY = FileFormat(
    "metrics.csv",
    "fit",
    "One row per epoch and, with `trainer.log_every_n_steps`, per logged step. Cells of metrics that were not measured "
    "are empty.",
    {
        "epoch": Field("epoch, from 1", COUNT),
        "step": Field("optimizer steps so far", COUNT),
        "lr": Field("learning rate of the first group of parameters in this epoch", "number"),
        "train/loss": Field("weighted sum of the loss terms, mean over the epoch's images", "number"),
        "train/loss_<term>": Field("each loss term without its weight", "number"),
        "train/loss_step": Field("loss of a logged step", "number", "logged steps"),
        "val/loss": Field("cross-entropy of the class head", "nats"),
        "val/acc": Field("accuracy of the class head on untransformed images; with peers their mean", FRACTION),
        "val/acc_top5": Field("top-5 accuracy", FRACTION, "more than five classes"),
        "val/branch<number>_class": Field("class accuracy of a branch, over all transformations", FRACTION, BRANCHES),
        "val/branch<number>_class_top5": Field("its top-5 accuracy", FRACTION, BRANCHES),
        "val/branch<number>_joint": Field("accuracy of the joint label of a branch", FRACTION, BRANCHES),
        "val/branch<number>_joint_top5": Field("its top-5 accuracy", FRACTION, BRANCHES),
        "val/peer<number>_<metric>": Field("metrics of each peer", "as above", PEERS),
        "val/ensemble_<metric>": Field("metrics of the mean of the peers' logits", "as above", PEERS),
        "val/knn_acc": Field("accuracy of the nearest neighbours' vote", FRACTION, "`LinearProbeModule` with `knn`"),
        "val/linear_acc": Field("accuracy of a linear probe by least squares", FRACTION, "`EmbeddingModule`"),
        "val/cosine": Field(
            "mean cosine of the student's and the teacher's embeddings", "in [-1, 1]", "`EmbeddingModule`"
        ),
    },
)
CHECKPOINT = FileFormat(
    "last.ckpt, best.ckpt",
    "fit",
    "Checkpoints of Lightning, of the last and of the best epoch. They contain tensors and plain values only, and all "
    "that `test`, `predict` and `export` need. `hpc_ckpt_<n>.ckpt` is that of a job that SLURM requeues.",
    {
        "epoch": Field("epoch, from 0", COUNT),
        "global_step": Field("optimizer steps", COUNT),
        "pytorch-lightning_version": Field("version of Lightning"),
        "state_dict": Field("weights, without those of frozen teachers", "tensors by name"),
        "loops": Field("Lightning's position in the run", "dictionary"),
        "callbacks": Field("state of each callback, by class", "dictionary"),
        "optimizer_states": Field("state of each optimizer", "list"),
        "lr_schedulers": Field("state of each schedule", "list"),
        "hparams_name": Field("name under which Lightning passes the options on"),
        "hyper_parameters": Field("options of the module", "dictionary"),
        "transforms": Field("transformations of each network, in words", "list"),
        "networks": Field("registered name of each network, null for others", "list"),
        "probe": Field("whether the module is a linear probe", "true or false"),
        "embedding": Field("width of the embedding", COUNT, "`EmbeddingModule`"),
        "quantisation": Field("range of each activation of each network", "pairs of numbers", "`QuantizationAware`"),
        "slurm_job": Field("`SLURM_JOB_ID`, null outside of SLURM"),
        "data.class_names": Field("names in label order", "list"),
        "data.image_size": Field("side of the images", "pixels"),
        "data.resize": Field("short side before the centre is cropped", "pixels"),
        "data.mean": Field("mean of each channel", "pixel values in [0, 1]"),
        "data.std": Field("standard deviation of each channel", "pixel values in [0, 1]"),
        "<name>DataModule": Field("state of the data module: facts of the splits", "dictionary"),
        "current_model_state": Field("weights that are trained, next to their average", "tensors by name", "`EMA`"),
    },
)
CONFIG = FileFormat(
    "config.yaml",
    "fit",
    "The whole configuration of the run, with all defaults: `hsakd fit --config config.yaml` repeats it.",
    {
        "seed_everything": Field("seed", COUNT),
        "cache_features": Field("option of `fit`", "true or false"),
        "save_every_minutes": Field("option of `fit`", "minutes"),
        "ckpt_path": Field("checkpoint that was resumed", when="a resumed run"),
        "weights_only": Field("option of `fit`", "true or false", "Lightning 2.6 and newer"),
        "trainer.<option>": Field("options of Lightning's `Trainer`"),
        "model.class_path": Field("class of the module"),
        "model.init_args.<option>": Field("its [options](api/modules.md)"),
        "data.class_path": Field("class of the data module"),
        "data.init_args.<option>": Field("its [options](api/data.md)"),
        "optimizer": Field("another optimizer, or null"),
        "lr_scheduler": Field("another schedule, or null"),
    },
)
PREDICTIONS = FileFormat(
    "predictions.csv",
    "predict",
    "One row per image, in their order. Several devices write `predictions.rank<n>.csv` each.",
    {
        "image": Field("path of the image, or its number from 0"),
        "class": Field("name of the most probable class"),
        "probability": Field("its probability", FRACTION),
        "agreement": Field("share of the transformations under which this class is the most probable", FRACTION),
        "error": Field("reason why an image was not predicted; the other cells are then empty"),
    },
)
LINES = FileFormat(
    "predictions.jsonl",
    "predict",
    "The same, with the next most probable classes; one line of JSON per image.",
    {
        "image": PREDICTIONS.fields["image"],
        "class": PREDICTIONS.fields["class"],
        "probability": PREDICTIONS.fields["probability"],
        "agreement": PREDICTIONS.fields["agreement"],
        "top[].class": Field("name of each of the most probable classes"),
        "top[].probability": Field("its probability", FRACTION),
        "weights": Field("digest of the weights that predicted", DIGEST),
        "error": Field("reason why an image was not predicted, in place of the other fields", when="a broken image"),
    },
)
ROWS = FileFormat(
    "rows.jsonl",
    "report",
    "One line of JSON per run below the folder.",
    {
        "folder": Field("folder of the run"),
        "test": Field("in place of its fields", "null", "a run without a test"),
        "test.<field>": Field("fields of its [`test.json`](#testjson)", "as there", "a test"),
        "<field>": Field("fields of its [`result.json`](#resultjson)", "as there"),
    },
)
PICTURES = (
    FileFormat("curves.png", "fit", "Curves of losses and accuracies over the epochs; needs matplotlib."),
    FileFormat("ensemble.png", "test", "Accuracy over multiply-adds of ensembles and early exits; needs matplotlib."),
)
FILES = (RESULT, TEST, DETAILS, HISTORY, CHECKPOINT, CONFIG, *PICTURES, PREDICTIONS, LINES, ROWS)
