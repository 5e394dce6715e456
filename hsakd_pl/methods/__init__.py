"""The methods that HSAKD is compared with: a file each, a pure loss and a module."""

from hsakd_pl.methods.attention import attention_loss
from hsakd_pl.methods.contrast import contrast_loss, contrast_scores
from hsakd_pl.methods.correlation import correlation_loss
from hsakd_pl.methods.dist import dist_loss
from hsakd_pl.methods.dkd import dkd_loss
from hsakd_pl.methods.fitnet import hint_loss
from hsakd_pl.methods.pkt import pkt_loss
from hsakd_pl.methods.reviewkd import hierarchical_context_loss
from hsakd_pl.methods.rkd import rkd_loss
from hsakd_pl.methods.similarity import similarity_loss
from hsakd_pl.methods.sskd import sskd_terms
from hsakd_pl.methods.standardized import standardized_kd_loss
from hsakd_pl.methods.vid import vid_loss

__all__ = [
    "attention_loss",
    "contrast_loss",
    "contrast_scores",
    "correlation_loss",
    "dist_loss",
    "dkd_loss",
    "hierarchical_context_loss",
    "hint_loss",
    "pkt_loss",
    "rkd_loss",
    "similarity_loss",
    "sskd_terms",
    "standardized_kd_loss",
    "vid_loss",
]
