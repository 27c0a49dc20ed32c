"""What runs inside the embedder process: a model that turns texts into vectors, and the indexes.

Only this package imports numpy, hnswlib and sentence-transformers. `protocol` is what the kernel
(aiosd/embedder.py) and the process say to each other.
"""
