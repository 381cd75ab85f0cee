"""The engine process: the only package that imports torch.

The worker imports only `engine.protocol`, which loads no model library. Begin reading at
`core/loop.py`.
"""
