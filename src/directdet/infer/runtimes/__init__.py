"""The runtimes that run a network: PyTorch, ONNX Runtime, OpenVINO, TensorRT."""
