"""Hide what Lightning logs about itself."""

import logging
import re
import warnings

# What Lightning logs about itself and about hardware; the package's own summary has the rest
ADVERTS = r"Seed set|GPU available|TPU available|💡|LOCAL_RANK|`Trainer\.fit` stopped: `max_|Using .* Mixed Precision"
LOGGERS = (
    "pytorch_lightning.utilities.rank_zero",
    "pytorch_lightning.accelerators.cuda",
    "lightning_fabric.utilities.seed",
)
IGNORED_WARNINGS = (
    "Checkpoint directory .* exists",  # a resumed run has one
    "LightningCLI's args parameter",  # all commands pass them
    "Couldn't infer the batch indices",  # predictions name their files
    "The number of training batches .* is smaller",  # metrics are logged per epoch as well
    ".*callbacks used to create the checkpoint.*Progress'\\]",  # the progress bar may be switched off
    ".*LeafSpec.* is deprecated",  # raised within Lightning
)


def quieten_lightning() -> None:
    """Hide Lightning's tips, its lines about hardware, and its warnings that have no consequence here.

    Notebooks and scripts call it once, before they create a trainer; the program ``hsakd`` does so itself. Lines of
    this package and all other warnings remain.

    Examples:
        >>> import hsakd_pl
        >>> hsakd_pl.quieten_lightning()
    """
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_is_no_advert)


def _is_no_advert(record: logging.LogRecord) -> bool:
    return not re.match(ADVERTS, record.getMessage())
