"""From a checkpoint to a verified artefact: folded batch normalisation, the ONNX graph, int8, TensorRT engines."""
