"""The methods that HSAKD is compared with, one file per method: a pure loss, its trainable parts and a module."""

from hsakd_pl.methods.attention import AttentionModule, attention_loss
from hsakd_pl.methods.correlation import CorrelationModule, correlation_loss
from hsakd_pl.methods.crd import CRDModule, contrast_loss
from hsakd_pl.methods.dist import DISTModule, dist_loss
from hsakd_pl.methods.distilled import DistilledModule
from hsakd_pl.methods.dkd import DKDModule, dkd_loss
from hsakd_pl.methods.dml import DMLModule
from hsakd_pl.methods.fitnet import FitNetModule, hint_loss
from hsakd_pl.methods.kd import KDModule
from hsakd_pl.methods.pkt import PKTModule, pkt_loss
from hsakd_pl.methods.reviewkd import ReviewKDModule, hierarchical_context_loss
from hsakd_pl.methods.rkd import RKDModule, rkd_loss
from hsakd_pl.methods.similarity import SimilarityModule, similarity_loss
from hsakd_pl.methods.sskd import SSKDModule, SSKDProjectionModule, sskd_terms
from hsakd_pl.methods.standardized import StandardizedKDModule, standardized_kd_loss
from hsakd_pl.methods.vid import VIDModule, vid_loss

__all__ = [
    "AttentionModule",
    "CRDModule",
    "CorrelationModule",
    "DISTModule",
    "DKDModule",
    "DMLModule",
    "DistilledModule",
    "FitNetModule",
    "KDModule",
    "PKTModule",
    "RKDModule",
    "ReviewKDModule",
    "SSKDModule",
    "SSKDProjectionModule",
    "SimilarityModule",
    "StandardizedKDModule",
    "VIDModule",
    "attention_loss",
    "contrast_loss",
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
