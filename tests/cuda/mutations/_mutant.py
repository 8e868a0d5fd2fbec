"""What a mutant is."""

import dataclasses

# Of what is compiled with a mutant, the test.
TESTS = {
    "kernels": "test_kernels",
    "formats": "test_formats",
    "sparse": "test_topk",
    "trellis": "test_bitshift",
    "entropy": "test_entropy",
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
        return next((kind for kind in ("formats", "sparse", "trellis", "entropy") if kind in self.file), "kernels")

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
