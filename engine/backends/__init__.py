"""Backends: in flight, `model.generate`, vLLM, CTranslate2, and a fake."""
