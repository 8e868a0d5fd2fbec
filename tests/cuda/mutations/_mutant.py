"""What a mutant is."""

import dataclasses

# Of what is compiled with a mutant, the test.
TESTS = {
    "kernels": "test_kernels",
    "formats": "test_formats",
    "sparse": "test_topk",
    "trellis": "test_bitshift",
    "entropy": "test_entropy",
    "entropy_encoder": "test_entropy_encoder",
}
# Of files whose names have a text, in this order, what is compiled with them.
_EMULATED = {
    **dict.fromkeys(("formats", "sparse", "trellis"), ""),
    **dict.fromkeys(("ectcq", "encode_entropy", "_encoder", "_classes", "_rate", "_writer"), "entropy_encoder"),
    "entropy": "",
}


class Error(Exception):
    pass


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One text of a kernel's source, and another in its place.

    Attributes:
        file: of csrc/kernels.
        first: the build to try first, where only that one is likely to see it.
    """

    name: str
    file: str
    text: str
    replacement: str
    first: str = "plain"

    @property
    def emulated(self) -> str:
        """What is compiled with it, EMULATED_emulated.cpp."""
        return next((emulated or text for text, emulated in _EMULATED.items() if text in self.file), "kernels")

    @property
    def test(self) -> str:
        return TESTS[self.emulated]

    def apply(self, source: str) -> str:
        """The source with the other text. Raises Error unless the text is there once."""
        if source.count(self.text) != 1:
            raise Error(
                f"{self.name}: its text is in {self.file} {source.count(self.text)} times, not once:\n{self.text}"
            )
        return source.replace(self.text, self.replacement)
