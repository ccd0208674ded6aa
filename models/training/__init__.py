"""Train the shipped model from a market capture, measure it where it has not been, and say what it is worth.

`samples` (a capture as arrays) -> `outcome` (what is predicted) -> `split` (which samples may be used for
what) -> `fit` (PyTorch) -> `export` (ONNX) -> `measure` and `card` (how good).
`python -m sigd.models.training --help`.
"""
