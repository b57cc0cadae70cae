"""Ollama's description of a model: where it lies, and how it writes."""

from __future__ import annotations

from pathlib import Path

from cpulm.export.trained_model import TrainedModel


def modelfile(trained: TrainedModel, gguf: Path) -> str:
    """Return the text of a Modelfile that lies beside the GGUF file.

    The template is the prompt alone: the model continues text, and knows no roles.
    """
    return f"""FROM ./{gguf.name}
TEMPLATE \"\"\"{{{{ .Prompt }}}}\"\"\"
PARAMETER num_ctx {trained.model.settings.block_size}
PARAMETER temperature 0.8
PARAMETER top_k 50
PARAMETER top_p 1
PARAMETER repeat_penalty 1
"""
