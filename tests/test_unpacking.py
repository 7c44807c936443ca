"""GGUF files as a base: written here from a tiny model's weights, as llama.cpp lays them out."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from all_stages import JUDGED
from conftest import ROOT, edit_yaml
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, quants
from huggingface_hub import constants
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from commands import export
from library.errors import InputError
from library.files import read_json
from library.llm.manifest import find_model_folder, make_manifest
from library.llm.unpacking import read_quantization
from library.params import load_model_file
from library.paths import GGUF_DIR, MANIFEST_PATH, MERGED_DIR
from stages import base, clean, format, zeroshot

WIDTH, HEADS, LAYERS = 64, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ENTRIES = 256 + 1 + len(SPECIAL)  # bytes, one merge
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def to_bytes():
    """GPT-2's alphabet: a printable letter for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + at) for at, byte in enumerate(others)}


def write_gguf(path, model):
    """A Llama model in Q8_0, with a tokenizer of single bytes."""
    writer = GGUFWriter(path, "llama")
    writer.add_file_type(LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(2048)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    tokens = [*to_bytes().values(), "ab", *SPECIAL]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * len(SPECIAL))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(259)
    writer.add_pad_token_id(257)
    writer.add_chat_template(CHAT)
    weights = {"token_embd": "embed_tokens", "output_norm": "norm"} | {
        f"blk.{layer}.{theirs}": f"layers.{layer}.{ours}"
        for layer in range(LAYERS)
        for ours, theirs in NAMES.items()
    }
    state = model.state_dict()
    for theirs, ours in weights.items():
        value = state[f"model.{ours}.weight"]
        if ours.endswith(("q_proj", "k_proj")):  # llama.cpp turns pairs of neighbours
            value = value.reshape(HEADS, 2, -1, WIDTH).swapaxes(1, 2).reshape(value.shape)
        array = np.ascontiguousarray(value.numpy(), dtype=np.float32)
        if array.ndim == 1:
            writer.add_tensor(f"{theirs}.weight", array)
        else:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{theirs}.weight", quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def model(project, monkeypatch):
    """The model whose weights the GGUF file of models/local holds."""
    monkeypatch.setattr(constants, "HF_HOME", str(project / "home"))
    folder = Path("models/local")
    for path in folder.iterdir():
        if path.is_symlink():
            path.unlink()
    torch.manual_seed(1)
    config = AutoConfig.for_model(
        "llama", vocab_size=ENTRIES, hidden_size=WIDTH, intermediate_size=WIDTH,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, tie_word_embeddings=True,
    )  # fmt: skip
    made = AutoModelForCausalLM.from_config(config)
    write_gguf(folder / "tiny.Q8_0.gguf", made)
    text = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(text.replace("sha256: null", "path: tiny.Q8_0.gguf"))
    edit_yaml("params.yaml", format__max_length=2048)
    return made


def test_it_is_unpacked_once_and_asked_as_any_other_model(model, caplog):
    with caplog.at_level("INFO"):
        base.main()
    assert "unpacking models/local/tiny.Q8_0.gguf" in caplog.text
    assert "had been quantized to Q8_0: the precision that this lost stays lost" in caplog.text
    source = read_json(MANIFEST_PATH)["source"]
    assert (source["path"], source["quantized"]) == ("models/local/tiny.Q8_0.gguf", "Q8_0")
    unpacked = load_file(find_model_folder(source) / "model.safetensors")
    for name, value in unpacked.items():
        original = model.state_dict()[name]
        # Q8_0 keeps a 127th of the largest of 32 weights, bfloat16 8 bits
        assert torch.allclose(value.float(), original, atol=0.02 * float(original.abs().max())), (
            name
        )
    caplog.clear()
    for stage in (base, clean, format, zeroshot):
        stage.main()
    assert "unpacking" not in caplog.text
    assert Path("data/predictions/zeroshot.jsonl").is_file()


def test_what_is_no_gguf_file_or_not_there_is_said(model):
    path = Path("models/local/tiny.Q8_0.gguf")
    path.write_bytes(b"GGUF but not really" * 10)
    with pytest.raises(InputError, match=r"tiny\.Q8_0\.gguf: not a GGUF file of a model"):
        read_quantization(path)
    path.unlink()
    with pytest.raises(InputError, match=r"models/local/tiny\.Q8_0\.gguf: no such file"):
        make_manifest(load_model_file("local"))


def test_on_another_machine_base_has_to_unpack_it_again(model, monkeypatch, tmp_path):
    manifest = make_manifest(load_model_file("local"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="is not unpacked on this machine: run `dvc repro base"):
        find_model_folder(manifest["source"])


# stands where llama.cpp's converter does, and writes a real file with the arguments it is given
CONVERTER = f"""
import argparse, sys
from pathlib import Path
parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--outtype", choices=["bf16", "f16", "q8_0"])
parser.add_argument("--outfile", type=Path)
arguments = parser.parse_args()
if arguments.outtype == "f16":
    raise NotImplementedError("BPE pre-tokenizer was not recognized - update get_vocab_base_pre()")
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from test_unpacking import write_gguf
from transformers import AutoModelForCausalLM
write_gguf(arguments.outfile, AutoModelForCausalLM.from_pretrained(arguments.model).float())
"""


def test_what_is_exported_is_packed_asked_again_and_has_a_modelfile(
    model, project, monkeypatch, capsys, caplog
):
    monkeypatch.setattr(sys, "argv", ["export"])
    edit_yaml("params.yaml", format__max_length=1024, format__max_new_tokens=16)
    for stage in JUDGED:
        stage.main()
    source = project / "llama.cpp"
    source.mkdir()
    monkeypatch.setenv("GGUF", "q8_0")
    for value, message in (("", "LLAMA_CPP is not set"), (str(source), "no convert_hf_to_gguf")):
        monkeypatch.setenv("LLAMA_CPP", value)
        with pytest.raises(InputError, match=message):
            export.main()
    (source / "convert_hf_to_gguf.py").write_text(CONVERTER)
    monkeypatch.setenv("GGUF", "q2")
    with pytest.raises(InputError, match="GGUF=q2: expected bf16, f16, q8_0"):
        export.main()
    monkeypatch.setenv("GGUF", "f16")
    with pytest.raises(InputError, match="does not know this model's tokenizer"):
        export.main()
    assert not MERGED_DIR.exists()

    monkeypatch.setenv("GGUF", "q8_0")
    capsys.readouterr()
    export.main()
    printed = capsys.readouterr().out
    assert {path.name for path in GGUF_DIR.iterdir()} == {"model-q8_0.gguf", "Modelfile"}
    assert {path.name for path in GGUF_DIR.parent.iterdir()} == {
        "base", "adapter", "dpo", "merged", "gguf",
    }  # fmt: skip
    assert "FROM ./model-q8_0.gguf\n" in (GGUF_DIR / "Modelfile").read_text()
    assert "FROM .\n" in (MERGED_DIR / "Modelfile").read_text()
    assert read_quantization(GGUF_DIR / "model-q8_0.gguf") == "Q8_0"
    assert "model-q8_0.gguf, asked the same questions after it was unpacked again" in printed
    # what was lost to 8 bits shows: both tables have the same rows, with other last digits
    first, second = (
        next(line for line in part.splitlines() if line.startswith("| bits per byte"))
        for part in printed.split("model-q8_0.gguf, asked")
    )
    assert first.split("|")[2:4] == second.split("|")[2:4]
    assert "its own tokenizer makes other tokens" not in caplog.text

    load = export.load_merged

    def load_little(folder):
        if folder.name == "unpacked":
            raise InputError("out of memory")
        return load(folder)

    shutil.rmtree(MERGED_DIR)
    shutil.rmtree(GGUF_DIR)
    with monkeypatch.context() as small:  # what is made and measured by then is kept
        small.setattr(export, "load_merged", load_little)
        export.main()
    assert "model-q8_0.gguf is kept, but was not asked again: out of memory" in caplog.text
    assert (GGUF_DIR / "model-q8_0.gguf").is_file()
    assert (MERGED_DIR / "README.md").is_file()
    said = capsys.readouterr().out
    assert "no evidence that what is shipped is worse" in said
    assert "asked the same questions" not in said

    monkeypatch.delenv("GGUF")
    monkeypatch.delenv("LLAMA_CPP")
    export.main()
    assert MERGED_DIR.is_dir()
    assert not GGUF_DIR.exists()
    assert "artifacts/gguf is of the last export: removed" in caplog.text
