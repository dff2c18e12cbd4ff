"""What to do when steps are skipped over and over: go back to saved weights, then stop."""

from collections.abc import Mapping

__all__ = ["Guard"]


class Guard:
    """Sees to it that a run does not skip steps for long.

    The step itself leaves the weights alone where loss or gradient is not finite or a spike.
    """

    def __init__(self, max_skipped: int, max_rollbacks: int) -> None:
        """Starts to count.

        Args:
            max_skipped: Steps in a row that may be skipped before going back.
            max_rollbacks: Times that a run may go back before it stops.
        """
        self._max_skipped, self._rollbacks_left = max_skipped, max_rollbacks

    def wants_rollback(self, values: Mapping[str, float | None]) -> bool:
        """Whether a logged step shows too many skipped ones."""
        return (values.get("skipped_in_a_row") or 0) > self._max_skipped

    def take_rollback(self) -> bool:
        """Uses one up; False if none is left."""
        self._rollbacks_left -= 1
        return self._rollbacks_left >= 0
