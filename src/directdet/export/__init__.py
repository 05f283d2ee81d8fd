"""From a checkpoint to a verified artefact: folding, the ONNX graph, TensorRT engines."""
