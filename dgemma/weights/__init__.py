"""Files of weights to a network and back: find, open, name, load, save, pull.

`safetensors` only, never pickle. A `TensorSource` hides the format of the files. Knows nothing
about text, sampling, or how packed numbers are unpacked.
"""
