"""The engine process: the only place with torch.

The parent imports `worker.engine.messages` and `worker.engine.spec`, which load
no model library. Begin reading at `loop.py`.
"""
