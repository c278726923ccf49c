"""Wrong texts for a retrieval task, drawn from its training split.

Source: UMD (arXiv 2404.06057) and M3AE, whose match head tells a picture's own text from 15 random
ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from umd_edge._tokenizer import TextTokenizer
from umd_edge.errors import UsageError

__all__ = ["DrawnTexts"]


class DrawnTexts:
    """Draws `count` wrong texts for each picture.

    Args:
        texts: Of the training pairs; equal ones count once.
        count: How many wrong texts each picture gets, all different.
        tokenizer: The model's.
        name: Of the task, for the message.

    Raises:
        UsageError: There are no more than `count` different texts.
    """

    def __init__(
        self, texts: Iterable[str], count: int, tokenizer: TextTokenizer, name: str
    ) -> None:
        self.texts = sorted(set(texts))
        self.count = count
        self._rows = {text: row for row, text in enumerate(self.texts)}
        self._tokenizer = tokenizer
        if len(self.texts) <= count:
            raise UsageError(
                f"tasks.drawn_texts: {count} given for {name!r}, whose training split has "
                f"{len(self.texts)} different texts; fewer than that are allowed"
            )

    def draw(self, own: Sequence[str], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens of the wrong texts of each pair.

        Args:
            own: The (E) right texts, which are not drawn.
            rng: Source of the draws.

        Returns:
            `input_ids` and `attention_mask`, both (E * count, L) int64, those of a pair together.
        """
        # NumPy draws few of many without shuffling them all
        draws = np.random.default_rng(int(torch.randint(2**62, (1,), generator=rng)))
        chosen: list[str] = []
        for text in own:
            right = self._rows.get(text, -1)
            # one more than needed, so that the right one can be left out
            rows = draws.choice(len(self.texts), self.count + 1, replace=False).tolist()
            chosen += [self.texts[row] for row in rows if row != right][: self.count]
        ids, mask = self._tokenizer.encode(chosen)
        return torch.from_numpy(ids), torch.from_numpy(mask)
