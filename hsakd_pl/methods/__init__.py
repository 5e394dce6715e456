"""The methods that HSAKD is compared with, one file per method: a pure loss, its trainable parts and a module."""

from hsakd_pl.methods.abkd import ABKDModule, StandardizedABKDModule, abkd_loss, standardized_abkd_loss
from hsakd_pl.methods.attention import AttentionModule, attention_loss
from hsakd_pl.methods.catkd import CATKDModule, catkd_loss
from hsakd_pl.methods.correlation import CorrelationModule, correlation_loss
from hsakd_pl.methods.crd import CRDModule, contrast_loss
from hsakd_pl.methods.crld import CRLDModule, crld_loss
from hsakd_pl.methods.ctkd import CTKDModule, CurriculumTemperature, ctkd_loss
from hsakd_pl.methods.dist import DISTModule, dist_loss
from hsakd_pl.methods.distilled import DistilledModule
from hsakd_pl.methods.dkd import DKDModule, dkd_loss
from hsakd_pl.methods.dml import DMLModule
from hsakd_pl.methods.fitnet import FitNetModule, hint_loss
from hsakd_pl.methods.kd import KDModule
from hsakd_pl.methods.ldrld import LDRLDModule, ldrld_loss
from hsakd_pl.methods.mlkd import MLKDModule, mlkd_loss, mlkd_terms
from hsakd_pl.methods.nkd import NKDModule, nkd_loss
from hsakd_pl.methods.normkd import NormKDModule, normkd_loss
from hsakd_pl.methods.pkt import PKTModule, pkt_loss
from hsakd_pl.methods.reviewkd import ReviewKDModule, hierarchical_context_loss
from hsakd_pl.methods.rkd import RKDModule, rkd_loss
from hsakd_pl.methods.rld import RLDModule, rld_loss
from hsakd_pl.methods.sdd import SDDDKDModule, SDDModule, region_logits, sdd_dkd_loss, sdd_loss
from hsakd_pl.methods.similarity import SimilarityModule, similarity_loss
from hsakd_pl.methods.simkd import SimKDModule, simkd_logits, simkd_loss, simkd_transfer
from hsakd_pl.methods.srrl import SRRLModule, srrl_loss, srrl_transfer
from hsakd_pl.methods.sskd import SSKDModule, SSKDProjectionModule, sskd_terms
from hsakd_pl.methods.standardized import StandardizedKDModule, standardized_kd_loss
from hsakd_pl.methods.ttm import TTMModule, WTTMModule, ttm_loss, wttm_loss
from hsakd_pl.methods.vid import VIDModule, vid_loss
from hsakd_pl.methods.wkd import (
    WKDModule,
    linear_cka,
    wkd_cost_matrix,
    wkd_decay,
    wkd_feature_loss,
    wkd_logit_loss,
)

__all__ = [
    "ABKDModule",
    "AttentionModule",
    "CATKDModule",
    "CRDModule",
    "CRLDModule",
    "CTKDModule",
    "CorrelationModule",
    "CurriculumTemperature",
    "DISTModule",
    "DKDModule",
    "DMLModule",
    "DistilledModule",
    "FitNetModule",
    "KDModule",
    "LDRLDModule",
    "MLKDModule",
    "NKDModule",
    "NormKDModule",
    "PKTModule",
    "RKDModule",
    "RLDModule",
    "ReviewKDModule",
    "SDDDKDModule",
    "SDDModule",
    "SRRLModule",
    "SSKDModule",
    "SSKDProjectionModule",
    "SimKDModule",
    "SimilarityModule",
    "StandardizedABKDModule",
    "StandardizedKDModule",
    "TTMModule",
    "VIDModule",
    "WKDModule",
    "WTTMModule",
    "abkd_loss",
    "attention_loss",
    "catkd_loss",
    "contrast_loss",
    "correlation_loss",
    "crld_loss",
    "ctkd_loss",
    "dist_loss",
    "dkd_loss",
    "hierarchical_context_loss",
    "hint_loss",
    "ldrld_loss",
    "linear_cka",
    "mlkd_loss",
    "mlkd_terms",
    "nkd_loss",
    "normkd_loss",
    "pkt_loss",
    "region_logits",
    "rkd_loss",
    "rld_loss",
    "sdd_dkd_loss",
    "sdd_loss",
    "similarity_loss",
    "simkd_logits",
    "simkd_loss",
    "simkd_transfer",
    "srrl_loss",
    "srrl_transfer",
    "sskd_terms",
    "standardized_abkd_loss",
    "standardized_kd_loss",
    "ttm_loss",
    "vid_loss",
    "wkd_cost_matrix",
    "wkd_decay",
    "wkd_feature_loss",
    "wkd_logit_loss",
    "wttm_loss",
]
