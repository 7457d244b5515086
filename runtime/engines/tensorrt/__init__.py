"""Run TensorRT plans on a GPU."""
