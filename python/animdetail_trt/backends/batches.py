"""As many rows in a call as memory allows, which is known for sure only when the call is made."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import TypeVar

from animdetail_trt.errors import is_out_of_memory

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class Batches:
    """Halves the batch of a call that found no memory, and begins later calls of its size with what was left.

    known_limits: size -> rows, where a call of that size found none; it never rises again
    """

    def __init__(self) -> None:
        self.known_limits: dict[Hashable, int] = {}

    def run(self, size: Hashable, count: int, at_once: int, call: Callable[[slice], Result]) -> list[Result]:
        """What ``call`` makes of rows 0 .. ``count``, in order and at most ``at_once`` of them at a time.

        size: what the memory for a row depends on. Raises what a call of one row raises.
        """
        results: list[Result] = []
        start = 0
        while start < count:
            stop = min(start + min(at_once, self.known_limits.get(size, at_once)), count)
            try:
                results.append(call(slice(start, stop)))
            except Exception as error:
                if stop - start == 1 or not is_out_of_memory(error):
                    raise
                left = self.known_limits[size] = (stop - start + 1) // 2
                logger.info("out of memory with %d at once: %d from now on", stop - start, left)
            else:
                start = stop
        return results
