"""Train the fine-tuned model on right against wrong answers (DPO), and ask it the test questions.

`dpo.num_train_epochs` says how long; by default it is 0, which turns DPO off. Reads
data/formatted/{train,validation,test}.jsonl, artifacts/base/ and artifacts/adapter/. Writes
artifacts/dpo/: adapter, history and memory of the training; and data/predictions/dpo/:
systems.json (lists it, if it is on), its answers and the record of what gave them.
"""

import logging
import shutil

from library.entry import run_main
from library.files import write_json
from library.params import load_params
from library.paths import DPO_DIR, DPO_PATH

log = logging.getLogger(__name__)


def main() -> None:
    """Train and ask, if DPO is on."""
    params = load_params()
    if params.dpo.num_train_epochs:
        # imported only if needed, because loading PyTorch takes seconds
        from library.llm.preferences import tune_on_preferences

        tune_on_preferences(params)
    else:
        for folder in (DPO_DIR, DPO_PATH.parent):
            shutil.rmtree(folder, ignore_errors=True)
        write_json(DPO_DIR / "off.json", {"num_train_epochs": 0})  # DVC warns of an empty folder
        write_json(DPO_PATH, {"systems": []})
        log.info("dpo.num_train_epochs in params.yaml is 0: nothing to train")


if __name__ == "__main__":
    run_main(main)
