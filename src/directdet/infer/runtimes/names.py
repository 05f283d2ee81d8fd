"""The runtimes by name: what runs which kind of model, what people call it, and the precisions it can be asked for."""

# What can run each kind of model; the first is what runtime="auto" takes.
RUNTIMES = {
    "onnx": ("onnxruntime", "openvino"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
    "checkpoint": ("torch",),
}
TITLES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "torch": "PyTorch",
}
# What each can be asked to compute in; None is its own choice, and all that an engine takes.
PRECISIONS: dict[str, tuple[str | None, ...]] = {
    "onnxruntime": (None, "fp32", "tf32"),
    "openvino": (None, "fp32", "bf16", "fp16"),
    "tensorrt": (None,),
    "tensorrt-rtx": (None,),
    "torch": (None, "fp32", "tf32", "bf16", "fp16"),
}
