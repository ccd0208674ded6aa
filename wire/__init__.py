"""The wire contract as code: layouts, framing, decoding, encoding, and the clients. The codec does no I/O."""
