"""The servers that sigd is measured beside, each a script for the environment that they are installed in.

A script is run by its path, so that it needs nothing of sigd: `python FILE MODEL ADDRESS`. Each takes float32
features as bytes and answers with float32 outputs as bytes, from one ONNX Runtime session of one thread.
"""
