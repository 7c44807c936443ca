"""Find contexts that are nearly the same text.

MinHash sketches of five-word shingles, compared by locality-sensitive hashing (Broder, On the
Resemblance and Containment of Documents, 1997), with the library datasketch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import xxhash
from datasketch import MinHash, MinHashLSH

from library.corpus.words import tokenize

SHINGLE_WORDS = 5
PERMUTATIONS, SCHEME = 64, "affine32"
SAME_SHARE = 0.8  # of all shingles of two texts, those they share (Jaccard)


def sketch(text: str) -> list[int]:
    """64 numbers below 2^32 that allow a text's shingles to be compared with another's."""
    words = tokenize(text)
    shingles = {
        " ".join(words[i : i + SHINGLE_WORDS]).encode()
        for i in range(max(1, len(words) - SHINGLE_WORDS + 1))
    }
    made = MinHash(num_perm=PERMUTATIONS, hashfunc=xxhash.xxh32_intdigest, scheme=SCHEME)
    made.update_batch(shingles)
    return [int(value) for value in made.hashvalues]


def find_near_duplicates(sketches: Mapping[str, Sequence[int]]) -> list[tuple[str, str]]:
    """Pairs of names whose texts share about 80% of their shingles or more, in the mapping's
    order.
    """
    index = MinHashLSH(threshold=SAME_SHARE, num_perm=PERMUTATIONS)
    pairs = []
    for name, values in sketches.items():
        made = MinHash(
            num_perm=PERMUTATIONS, hashvalues=np.array(values, dtype=np.uint32), scheme=SCHEME
        )
        for other in sorted(index.query(made)):
            if np.mean(np.array(sketches[other]) == np.array(values)) >= SAME_SHARE:
                pairs.append((other, name))
        index.insert(name, made)
    return pairs
