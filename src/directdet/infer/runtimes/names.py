"""The runtimes by name: the kinds of model each runs, its title, its Python module, and its precisions."""

# The runtimes of each kind of model; runtime="auto" takes the first.
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
# The Python module of each runtime.
MODULES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt_rtx",
    "torch": "torch",
}
# The precisions that each can be asked for; None is its own choice, and the only one for an engine.
PRECISIONS: dict[str, tuple[str | None, ...]] = {
    "onnxruntime": (None, "fp32", "tf32"),
    "openvino": (None, "fp32", "bf16", "fp16"),
    "tensorrt": (None,),
    "tensorrt-rtx": (None,),
    "torch": (None, "fp32", "tf32", "bf16", "fp16"),
}

# More than any processor has. A runtime told to start millions hangs or ends in an error of its own.
MOST_THREADS = 1024
