"""Fine-tune and ask again with other seeds: would the result hold if trained again?

`sft.seeds` lists them; by default there are none. Reads artifacts/base/ and
data/formatted/{train,validation,test}.jsonl. Writes data/predictions/seeds/: seeds.json (the list),
and for each seed its answers and the record of what gave them.
"""

import logging
import shutil

from library.entry import run_main
from library.files import write_json
from library.params import load_params
from library.paths import SEEDS_PATH

log = logging.getLogger(__name__)


def main() -> None:
    """Train and ask with each further seed, if there are any."""
    params = load_params()
    if params.sft.more_seeds:
        # imported only if needed, because loading PyTorch takes seconds
        from library.llm.seeds import repeat_with_seeds

        repeat_with_seeds(params)
    else:
        shutil.rmtree(SEEDS_PATH.parent, ignore_errors=True)
        write_json(SEEDS_PATH, {"seeds": []})
        log.info("sft.seeds in params.yaml names no further seed: nothing to train")


if __name__ == "__main__":
    run_main(main)
