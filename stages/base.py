"""Make the base model ready: every file checked and on record, and the model tried on one row.

Reads models/NAME/, where `model` in params.yaml is NAME. Writes artifacts/base/: manifest.json,
config.json, and the tokenizer with its chat template adapted. This is the only stage that may use
the network, but for `others`, which makes rivals ready.
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
