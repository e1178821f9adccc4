"""The detailer as nodes of ComfyUI, which alone imports ``animdetail_trt.comfyui.nodes``."""
