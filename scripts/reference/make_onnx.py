"""A small ONNX file with every way of storing tensors, and what its nodes and tensors are, as onnx itself reads them.

Usage: make_onnx.py OUT   (needs onnx 1.18.0 and numpy)
"""

import json
import os
import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

out = sys.argv[1]
os.makedirs(out, exist_ok=True)
rng = np.random.default_rng(3)


def values(*shape):
    return rng.standard_normal(shape).astype(np.float32)


conv, bias, dense, half = values(4, 3, 3, 3), values(4), values(4, 2), values(2).astype(np.float16)
make = helper.make_tensor
initializers = [
    numpy_helper.from_array(conv, "conv.weight"),  # raw_data
    make("conv.bias", TensorProto.FLOAT, [4], bias.tolist()),  # float_data
    make("dense.weight", TensorProto.DOUBLE, [4, 2], dense.astype(np.float64).flatten().tolist()),  # double_data
    make("shape", TensorProto.INT64, [2], [-1, 4]),  # int64_data
    make("half", TensorProto.FLOAT16, [2], half.tolist()),  # int32_data
    make("bytes", TensorProto.INT8, [3], [-1, 0, 127]),  # int32_data
    make("flags", TensorProto.BOOL, [2], [True, False]),
    make("wide", TensorProto.UINT64, [1], [2**63]),  # uint64_data
    numpy_helper.from_array(np.float32(0.5), "scalar"),
    numpy_helper.from_array(np.zeros((0, 2), np.float32), "empty"),
]
constant = helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.array([2.0], np.float32), "inner"))
nodes = [
    constant,
    helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["a"], name="first", kernel_shape=[3, 3], pads=[1, 1, 1, 1], auto_pad="NOTSET", group=1),
    helper.make_node("LeakyRelu", ["a"], ["b"], alpha=0.1),
    helper.make_node("GlobalAveragePool", ["b"], ["c"]),
    helper.make_node("Reshape", ["c", "shape"], ["d"]),
    helper.make_node("Clip", ["d", "", "two"], ["e"]),
    helper.make_node("Cast", ["dense.weight"], ["w"], to=TensorProto.FLOAT),
    helper.make_node("MatMul", ["e", "w"], ["y"]),
    helper.make_node("Odd", ["y"], ["z"], domain="my.own", numbers=[0.5, -1.0], words=["a", "b"], zero=0, none=0.0),
]
graph = helper.make_graph(
    nodes,
    "net",
    [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, None]),
        # Old files list initializers as inputs, too.
        helper.make_tensor_value_info("conv.bias", TensorProto.FLOAT, [4]),
    ],
    [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 2])],
    initializers,
)
model = helper.make_model(
    graph,
    producer_name="retune-tests",
    producer_version="1",
    opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("my.own", 1)],
)
model.ir_version = 8
onnx.save(model, f"{out}/net.onnx")

expected = {
    "tensors": {t.name: numpy_helper.to_array(t).astype(np.float64).flatten().tolist() for t in initializers},
    "nodes": [[n.op_type, list(n.input), list(n.output)] for n in nodes],
}
expected["tensors"]["two"] = [2.0]
with open(f"{out}/net.json", "w") as file:
    json.dump(expected, file, indent=1)
