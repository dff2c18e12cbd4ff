"""Where decoding may follow the release of VoxInstruct even in its faults, each by a switch of its own."""

import dataclasses

__all__ = ["FIXED", "DecodingRules"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodingRules:
    """True = as the release does, which its weights may need; False = mended.

    Two more departures show in training alone, and there only the mended form exists: conditions are dropped one at a
    time, and the known part of the codebook that is asked for is visible.

    Source:
        The inference program of the release; the guide to released weights lists each fault and its effect.
    """

    language_from_user: bool = False
    """The language must be given; otherwise it is predicted where it is not."""
    blank_whole_semantic_part: bool = False
    """Without semantic tokens BOS, language and EOS1 go, too; otherwise they stay."""
    lower_case_text: bool = False
    """All of the instruction but its first character is lower-cased, acronyms included."""
    shifted_semantic_ids: bool = False
    """The range of semantic ids begins at padding and ends two units early."""
    shifted_acoustic_ids: bool = False
    """The range of acoustic ids begins two semantic units early."""
    uneven_prompt: bool = False
    """Of the semantic tokens of a short voice prompt more are kept than of a longer one."""
    any_class_at_frames: bool = False
    """Codebooks from the second on may get BOS or an end in place of a code."""

    @classmethod
    def faithful(cls) -> "DecodingRules":
        """As the release in all of them."""
        return cls(**{field.name: True for field in dataclasses.fields(cls)})

    @classmethod
    def fixed(cls) -> "DecodingRules":
        """All of them mended: for weights trained here."""
        return cls()


FIXED = DecodingRules.fixed()
