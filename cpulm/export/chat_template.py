"""The template of conversations for other programs; cpulm's own is ``cpulm.data.records.chat``."""

from __future__ import annotations

JINJA = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('the roles are system, user and assistant') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""For transformers, llama.cpp, LM Studio, MLX and vLLM. The first token is that of every record."""

OLLAMA = "{{ range .Messages }}<|{{ .Role }}|>{{ .Content }}<|end|>{{ end }}<|assistant|>"
"""In the language of Go's templates. Ollama puts the first token there itself."""
