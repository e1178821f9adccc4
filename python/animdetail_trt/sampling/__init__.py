"""Sampling: schedules, samplers, guidance, masks and context windows, over any backend."""

from animdetail_trt.sampling.conditioning import Conditioning
from animdetail_trt.sampling.context import ContextOptions
from animdetail_trt.sampling.model import DiffusionModel
from animdetail_trt.sampling.model_sampling import ModelSampling
from animdetail_trt.sampling.run import NoiseMask, SampleSettings, ksample, sample_part
from animdetail_trt.sampling.samplers import SAMPLERS
from animdetail_trt.sampling.schedules import SCHEDULES

SAMPLER_NAMES = tuple(SAMPLERS)
SCHEDULER_NAMES = tuple(SCHEDULES)

__all__ = [
    "SAMPLER_NAMES",
    "SCHEDULER_NAMES",
    "Conditioning",
    "ContextOptions",
    "DiffusionModel",
    "ModelSampling",
    "NoiseMask",
    "SampleSettings",
    "ksample",
    "sample_part",
]
