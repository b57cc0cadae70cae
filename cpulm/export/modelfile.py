"""Ollama's description of a model: where it lies, and how it writes."""

from __future__ import annotations

from pathlib import Path

from cpulm.data.records.chat import END
from cpulm.export.chat_template import OLLAMA
from cpulm.export.trained_model import TrainedModel


def modelfile(trained: TrainedModel, gguf: Path) -> str:
    """Return the text of a Modelfile that lies beside the GGUF file.

    The template is the prompt alone, unless the model was trained on conversations: else it knows no roles.
    """
    template = OLLAMA if trained.talks else "{{ .Prompt }}"
    stop = f'PARAMETER stop "{END}"\n' if trained.talks else ""
    return f"""FROM ./{gguf.name}
TEMPLATE \"\"\"{template}\"\"\"
{stop}PARAMETER num_ctx {trained.model.settings.block_size}
PARAMETER temperature 0.8
PARAMETER top_k 50
PARAMETER top_p 1
PARAMETER repeat_penalty 1
"""
