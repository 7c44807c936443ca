import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from library.errors import InputError
from library.llm.manifest import check_manifest, find_model_folder, make_manifest
from library.params import HubModel, LocalModel

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SETTINGS = {
    "quantization": "nf4",
    "gradient_checkpointing": False,
    "chat_template_kwargs": {},
    "learning_rate": 1e-3,
    "max_length": 384,
    "max_new_tokens": 96,
}
HUB = HubModel(id="someone/tiny", revision=COMMIT, config=None, **SETTINGS)


@pytest.fixture
def hub_cache(tmp_path, monkeypatch, tiny_dir):
    """The model as the hub's client keeps it: snapshots of links into blobs."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--tiny"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for index, path in enumerate(sorted(tiny_dir.iterdir())):
        shutil.copy(path, repository / "blobs" / str(index))
        (snapshot / path.name).symlink_to(f"../../blobs/{index}")
    return snapshot


def test_a_hub_model_is_found_in_the_cache_by_its_commit_alone(hub_cache):
    manifest = make_manifest(HUB)
    assert manifest["source"] == {"id": "someone/tiny", "revision": COMMIT}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= manifest["files"].keys()
    assert find_model_folder(manifest["source"]).resolve() == hub_cache.resolve()
    assert str(hub_cache.parent) not in str(manifest)


def test_a_hub_model_that_is_nowhere_is_an_error(hub_cache):
    with pytest.raises(
        InputError,
        match=r"someone/tiny at 1{40} is not in the Hub's cache and cannot be downloaded",
    ):
        make_manifest(HUB.model_copy(update={"revision": "1" * 40}))


class GatedHub(BaseHTTPRequestHandler):
    """What the hub says of a model whose licence was not accepted."""

    def do_GET(self):
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


def test_a_gated_model_says_how_to_get_it(hub_cache, monkeypatch):
    with HTTPServer(("127.0.0.1", 0), GatedHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        with pytest.raises(
            InputError,
            match=r"someone/tiny at 1{40} is gated: accept its licence at https://huggingface\.co/"
            r"someone/tiny, then `hf auth login`",
        ):
            make_manifest(HUB.model_copy(update={"revision": "1" * 40}))
        server.shutdown()


def test_a_half_downloaded_hub_model_is_an_error_after_base_too(hub_cache):
    manifest = make_manifest(HUB)
    (hub_cache / "model.safetensors").unlink()
    with pytest.raises(
        InputError, match="not complete in the hub cache: run `dvc repro base --force`"
    ):
        find_model_folder(manifest["source"])


def test_a_local_folder_is_checked_for_its_files_and_hash(tmp_path, tiny_dir):
    folder = shutil.copytree(tiny_dir, tmp_path / "model")
    model = LocalModel(folder=str(folder), sha256=None, **SETTINGS)
    digest = make_manifest(model)["files"]["model.safetensors"]["sha256"]
    make_manifest(model.model_copy(update={"sha256": digest}))
    with pytest.raises(
        InputError, match=rf"model\.safetensors: SHA-256 is {digest}, expected {'0' * 64}"
    ):
        make_manifest(model.model_copy(update={"sha256": "0" * 64}))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no model\.safetensors"):
        make_manifest(model)
    with pytest.raises(InputError, match="no such folder"):
        make_manifest(model.model_copy(update={"folder": str(tmp_path / "absent")}))


def test_a_file_that_changed_since_is_refused(tmp_path, tiny_dir):
    folder = shutil.copytree(tiny_dir, tmp_path / "model")
    manifest = make_manifest(LocalModel(folder=str(folder), sha256=None, **SETTINGS))
    check_manifest(manifest, folder)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(
        InputError, match=r"model\.safetensors: changed since the base stage saw it"
    ):
        check_manifest(manifest, folder)
