"""What a model is: its spec, the backends that run it, the features it reads, its training."""

import os

# ONNX Runtime reports on its use unless this stands before it is loaded: it keeps a database in the home
# directory, connects to its maker and starts two threads in every process that loads it. Nothing of that
# belongs beside a trading engine. An operator who wants it sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
