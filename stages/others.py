"""Ask other systems the test questions: the base model with examples or with thinking, and other
models zero-shot.

`evaluate.few_shot`, `thinking_tokens` and `rivals` name them; by default there are none. Reads
data/clean/rows.jsonl, data/formatted/{test,train}.jsonl, metrics/format.json and artifacts/base/.
Writes data/predictions/others/: systems.json (the list), and for each system its answers and a
record of the model. Rivals that are not in the Hub's cache are downloaded. DVC does not watch their
files: after editing one, run `dvc repro --force others`.
"""

import logging
import shutil

from library.entry import run_main
from library.files import write_json
from library.params import list_others, load_params
from library.paths import OTHERS_PATH

log = logging.getLogger(__name__)


def main() -> None:
    """Ask the systems, if there are any."""
    params = load_params()
    systems = list_others(params.evaluate)
    if systems:
        # imported only if needed, because loading PyTorch takes seconds
        from library.llm.others import ask_others

        ask_others(params)
    else:
        shutil.rmtree(OTHERS_PATH.parent, ignore_errors=True)
        write_json(OTHERS_PATH, {"systems": systems})
        log.info("evaluate in params.yaml names no other system")


if __name__ == "__main__":
    run_main(main)
