"""ONNX files: reading, checking, taking apart."""
