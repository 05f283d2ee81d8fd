"""An OpenVINO model from an ONNX file: model.xml, and its weights in model.bin."""

from pathlib import Path

from directdet.common.errors import UserError
from directdet.infer.runtimes.library import import_library


def write_openvino(onnx_path: Path, xml_path: Path) -> list[Path]:
    """Convert `onnx_path` and save it as `xml_path` and a .bin file next to it, every weight in the type it has.

    Returns the files written. Raises UserError if OpenVINO is not installed or cannot convert the file.
    """
    openvino = import_library("openvino", "openvino", "install directdet[openvino]")
    try:
        model = openvino.convert_model(str(onnx_path))
        openvino.save_model(model, str(xml_path), compress_to_fp16=False)
    except Exception as error:  # OpenVINO raises RuntimeError and its own classes
        raise UserError(f"openvino cannot convert {onnx_path}: {' '.join(str(error).split())[:300]}") from None
    return [xml_path, xml_path.with_suffix(".bin")]
