"""The engine process: the only place with torch.

The parent imports `engine.protocol.messages` and `engine.protocol.engine_spec`, which load
no model library. Begin reading at `loop.py`.
"""
