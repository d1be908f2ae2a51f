"""Match two masked photographs and draw the matches, as a program on the public API.

match_pair.py IMAGE_A IMAGE_B OUT.png [MASK_A MASK_B]
"""

from __future__ import annotations

import sys
from pathlib import Path

from sparse_ga.errors import InputError, OutputError
from sparse_ga.io.drawing import draw_matches
from sparse_ga.match_pair import match_pair


def main(image_a: str, image_b: str, out: str, *masks: str) -> int:
    """Match, draw, and write the numbers beside the picture."""
    given = (masks[0], masks[1]) if len(masks) == 2 else None
    result = match_pair((image_a, image_b), given)
    try:
        draw_matches(result.view_i, result.view_j, result.verified.matches).save(out)
        result.save(Path(out).with_suffix(".npz"))
    except (OSError, ValueError) as error:  # ValueError: not the name of a picture
        raise OutputError(f"{out}: cannot be written ({error}); give a PNG file in a folder that is there") from None
    print(f"{len(result.verified.matches)} matches, score {result.verified.score:.2f}")
    if result.verified.rejected:
        print(f"a reconstruction would drop this pair: {result.verified.rejected}")
    return 0


if __name__ == "__main__":
    if len(sys.argv) not in (4, 6):
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except (InputError, OutputError) as error:
        print(f"match_pair.py: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 4)
