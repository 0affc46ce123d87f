"""The few words that the library itself puts before a model.

Knows nothing about models; `train` and `compose` share them, so that the bundled model has been
trained on what it will be asked.
"""

WRITE = "Write the text."
"""What is asked where part of the answer is given on the canvas and no context is."""
