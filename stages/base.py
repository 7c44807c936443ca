"""Check or download the base model, and try it on one row.

Reads models/NAME/, where `model` in params.yaml is NAME. Writes artifacts/base/: manifest.json
(every file with its hash), config.json, and the tokenizer with the adapted chat template. Only this
stage, `others` and the embedding stages use the network.
"""

from library.entry import run_main
from library.llm.preparing import prepare_base
from library.params import load_params
from library.paths import BASE_DIR


def main() -> None:
    """Prepare the base model that params.yaml names."""
    params = load_params()
    prepare_base(params.model, BASE_DIR, params.sft)


if __name__ == "__main__":
    run_main(main)
