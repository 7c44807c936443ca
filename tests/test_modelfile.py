"""What Ollama would make of a Modelfile, read as its documentation and Go's say."""

import re
from pathlib import Path

import pytest
from conftest import ROOT

from library.llm.chat_template import load_tokenizer, render
from library.llm.modelfile import read_turns, render_modelfile, write_go_template

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "A passage.\n\nWhat is {{ it }}?"},
    {"role": "assistant", "content": "A pump."},
    {"role": "user", "content": "Why?"},
]
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}<|im_end|>\n\n"
    "{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_end|>\n\n{% endif %}"
)
UNASKED = (  # as Qwen's: a system message of its own where none is given
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif %}"
)
FOLDED = (  # as Gemma's: the system message is part of the user's
    "{% if messages[0].role == 'system' %}{% set said = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set said = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<|im_start|>{{ m.role }}\n{% if loop.first %}{{ said }}{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
BRACED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ '{{' }}{{ m.content }}<|im_end|>{% endfor %}"
)


def execute(template, messages):
    """Go's text/template, as far as it is used: range over .Messages, if eq .Role, .Content."""
    parts = re.split(r"\{\{(.*?)\}\}", template, flags=re.DOTALL)
    nodes = [(at % 2 == 1, text.strip() if at % 2 else text) for at, text in enumerate(parts)]

    def run(at, message, on):
        """The text from a node to the `else` or `end` that closes it, and where that is."""
        written = ""
        while at < len(nodes):
            is_action, text = nodes[at]
            if is_action and (text == "end" or text.startswith("else ")):
                return written, at
            at += 1
            if not is_action:
                written += text if on else ""
            elif text == "range .Messages":
                bodies = [run(at, each, on) for each in messages]
                written += "".join(body for body, _ in bodies)
                at = bodies[0][1] + 1
            elif text.startswith("if "):
                taken, condition = False, text
                while True:
                    role = re.fullmatch(r'if eq \.Role "(\w+)"', condition)[1]
                    here = on and not taken and message["role"] == role
                    body, at = run(at, message, here)
                    written, taken = written + body, taken or here
                    condition = nodes[at][1].removeprefix("else ")
                    at += 1
                    if condition == "end":
                        break
            else:
                field = {".Content": "content", ".Role": "role"}[text]
                written += message[field] if on else ""
        return written, at

    return run(0, None, True)[0]


def read(modelfile):
    """A Modelfile's instructions, with what is quoted as it is."""
    found = re.findall(
        r'^(FROM|TEMPLATE|SYSTEM|PARAMETER \w+) (?:"""(.*?)"""|"(.*?)"|(.*?))$',
        modelfile,
        flags=re.MULTILINE | re.DOTALL,
    )
    return [(name, *filter(None, values)) for name, *values in found]


def tokenizer(template=None, bos=None):
    made = load_tokenizer(ROOT / "models/tiny")
    made.chat_template = template or made.chat_template
    if bos:
        made.bos_token = bos
    return made


@pytest.mark.parametrize(
    ("template", "bos"),
    [(None, None), (None, "<|im_start|>"), (LLAMA, "<|endoftext|>"), (UNASKED, None)],
)
def test_its_template_writes_the_prompt_that_the_chat_template_writes(template, bos):
    asked = tokenizer(template, bos)
    text = render_modelfile(asked, TALK[:2], ".", 384, 96, ["<|im_end|>"])
    instructions = dict(read(text))
    for messages in (TALK[:2], TALK):
        written = render(asked, messages, add_generation_prompt=True)
        begins = "<|endoftext|>" if template == LLAMA else ""  # Ollama's own doing
        assert written == begins + execute(instructions["TEMPLATE"], messages)
    assert read(text) == [
        ("FROM", "."),
        ("TEMPLATE", instructions["TEMPLATE"]),
        ("SYSTEM", "Be brief."),
        ("PARAMETER num_ctx", "384"),
        ("PARAMETER num_predict", "96"),
        ("PARAMETER temperature", "0"),
        ("PARAMETER repeat_penalty", "1"),
        ("PARAMETER stop", "<|im_end|>"),
    ]


@pytest.mark.parametrize("template", [FOLDED, BRACED, "{{ raise_exception('no') }}", "no turns"])
def test_what_is_no_list_of_turns_is_left_to_ollama_and_said(template):
    asked = tokenizer(template)
    turns = read_turns(asked)
    assert turns is None or write_go_template(turns) is None
    text = render_modelfile(asked, [{"role": "system", "content": '"""'}], ".", 384, 96, [])
    assert "# No TEMPLATE: the model's chat template is no plain list of turns" in text
    assert '# No SYSTEM: the system message has """ in it' in text
    assert [name for name, *_ in read(text)] == ["FROM", *(f"PARAMETER {it}" for it in (
        "num_ctx", "num_predict", "temperature", "repeat_penalty",
    ))]  # fmt: skip


def test_the_embedded_models_modelfile_is_what_a_reader_expects():
    made = load_tokenizer(Path(ROOT / "models/tiny"))
    text = render_modelfile(made, TALK[:2], "./model-q8_0.gguf", 384, 96, ["<|im_end|>"])
    assert '{{ else if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n' in text
    assert text.splitlines()[1] == "FROM ./model-q8_0.gguf"
    assert '{{ end }}{{ end }}<|im_start|>assistant\n"""\nSYSTEM """Be brief."""\n' in text
