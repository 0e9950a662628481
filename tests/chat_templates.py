"""Chat templates as the families of published models have them, in small: what each does to a conversation."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tests.models import CHAT_TEMPLATE, make_tokenizer

_QWEN3 = """\
{%- if tools %}<|im_start|>system
{%- if messages[0].role == 'system' %}{{ '\\n' + messages[0].content }}{% endif %}
{{ '\\n# Tools\\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}{{ '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' %}{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}{% endif %}
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- elif m.role == 'assistant' %}
{%- set thoughts = m.reasoning_content or '' %}{% set said = m.content %}
{%- if '</think>' in said and not thoughts %}
{%- set thoughts = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
{%- set said = said.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{%- if loop.index0 > ns.last and (loop.last or thoughts) %}
{{- '<|im_start|>assistant\\n<think>\\n' + thoughts + '\\n</think>\\n\\n' + said }}
{%- else %}{{ '<|im_start|>assistant\\n' + said }}{% endif %}
{%- for call in m.tool_calls or [] %}{{ '\\n<tool_call>' }}{{ call | tojson }}{{ '</tool_call>' }}{% endfor %}
{{- '<|im_end|>\\n' }}
{%- elif m.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + m.content + '\\n</tool_response><|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}"""

_LLAMA3 = """\
{{- bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\n' }}
{{- 'Today Date: ' + strftime_now('%d %b %Y') + '\\n\\n' }}
{%- if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% endif %}{{ '<|eot_id|>' }}
{%- for m in messages %}{% if not (loop.first and m.role == 'system') %}
{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

_MISTRAL = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set ns = namespace(told=messages[0].content + '\\n\\n', rest=messages[1:]) %}
{%- else %}{% set ns = namespace(told='', rest=messages) %}{% endif %}
{%- for m in ns.rest %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m.role == 'user' %}{{ '[INST] ' + ns.told + m.content + ' [/INST]' }}{% set ns.told = '' %}
{%- else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"""

# The system message stands before the last question, wherever that is.
_MISTRAL_V3 = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set told = messages[0].content %}{% set rest = messages[1:] %}
{%- else %}{% set told = '' %}{% set rest = messages %}{% endif %}
{%- for m in rest %}
{%- if m.role == 'user' %}{{ '[INST] ' + (told + '\\n\\n' if told and loop.last else '') + m.content + '[/INST]' }}
{%- else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"""

_GEMMA = """\
{{- bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) }}
{{- '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

_PHI = """\
{%- for m in messages %}{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

# Earlier answers lose their thoughts.
_R1 = """\
{{- bos_token }}{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}
{%- for m in messages %}
{%- if m.role == 'user' %}{{ '<|User|>' + m.content }}{% endif %}
{%- if m.role == 'assistant' %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"""

# No system role, and nobody is told so.
_DEAF = """\
{%- for m in messages %}{% if m.role == 'user' %}{{ '<|user|>' + m.content + '<|end|>' }}
{%- elif m.role == 'assistant' %}{{ '<|assistant|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""


@dataclass(frozen=True)
class Family:
    template: str
    end: str  # of an answer
    markers: tuple[str, ...]  # special tokens
    eos: str | None = None  # of a text, where it is another one


FAMILIES = {
    "chatml": Family(CHAT_TEMPLATE, "<|im_end|>", ("<|im_start|>",)),
    "base_of_chatml": Family(CHAT_TEMPLATE, "<|im_end|>", ("<|im_start|>",), eos="<|endoftext|>"),
    "qwen3": Family(_QWEN3, "<|im_end|>", ("<|im_start|>",)),
    "llama3": Family(_LLAMA3, "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "mistral": Family(_MISTRAL, "</s>", ("[INST]", "[/INST]")),
    "mistral_v3": Family(_MISTRAL_V3, "</s>", ("[INST]", "[/INST]")),
    "gemma": Family(_GEMMA, "<end_of_turn>", ("<start_of_turn>",), eos="<eos>"),
    "phi": Family(_PHI, "<|end|>", ("<|user|>", "<|assistant|>", "<|system|>"), eos="<|endoftext|>"),
    "r1": Family(_R1, "<|end_of_sentence|>", ("<|User|>", "<|Assistant|>")),
    "deaf": Family(_DEAF, "<|end|>", ("<|user|>", "<|assistant|>")),
}


def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer whose special tokens and template are those of a family."""
    kind, tokenizer = FAMILIES[family], make_tokenizer()
    special = [kind.end, *kind.markers, kind.eos or kind.end]
    tokenizer.add_special_tokens({"additional_special_tokens": list(dict.fromkeys(special))})
    tokenizer.eos_token = kind.eos or kind.end
    tokenizer.chat_template = kind.template
    return tokenizer
