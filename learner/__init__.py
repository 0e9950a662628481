"""The gradient: objectives, chunked LM head, packing, the DeepSpeed engine, and how weights leave it."""
