"""From a checkpoint to a verified artefact: folded normalisation, the ONNX graph, int8, engines.

Called, `directdet.export` is `front.api.export`.
"""
