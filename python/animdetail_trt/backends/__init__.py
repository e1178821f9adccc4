"""What runs a model: the interfaces that sampling and the detailer call, and the choice between implementations."""

from animdetail_trt.backends.interface import UNetRunner, VaeRunner
from animdetail_trt.backends.select import BACKEND_NAMES, choose_backend, choose_device, choose_dtype

__all__ = ["BACKEND_NAMES", "UNetRunner", "VaeRunner", "choose_backend", "choose_device", "choose_dtype"]
