"""Files of weights to a network and back: find, verify, name, load, save, pull.

`safetensors` only, never pickle. Knows the layout of the released checkpoint; knows nothing about
text, sampling or number formats that need unpacking (`dgemma/quant`).
"""
