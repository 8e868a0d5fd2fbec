"""Reads the PTX that nvcc writes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import final

import numpy as np

from ._errors import ParseError, UnsupportedError
from ._kernel import Instruction, Kernel, Parameter, Variable
from ._types import dtype_of

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# Lines without a semicolon that say nothing about execution.
_LINE = re.compile(r"^[ \t]*\.(?:file|version|target|address_size)\b[^\n]*$", re.MULTILINE)
_FILE = re.compile(r'^[ \t]*\.file\s+(\d+)\s+"([^"\n]*)"', re.MULTILINE)
_LOCATION = re.compile(r"^[ \t]*\.loc\b[^\n;]*", re.MULTILINE)
_PLACE = re.compile(r"(?:\.loc|inlined_at)\s+(\d+)\s+(\d+)")
_LABEL = re.compile(r"([$\w]+)\s*:(?!:)")
_WORD = re.compile(r"[%$A-Za-z_][\w$@~]*")
_GUARD = re.compile(r"@(!?)\s*(%?[\w$@~]+)\s+(.*)", re.DOTALL)
_REGISTERS = re.compile(r"(%?[\w$]+)<(\d+)>")
_VARIABLE = re.compile(
    r"\.(?P<space>global|const|shared|local|param)\b(?P<attributes>(?:\s*\.(?:align\s+\d+|ptr|global|const|shared|local|"
    r"attribute\([^)]*\)|managed))*)\s*(?:\.v(?P<vector>\d))?\s*\.(?P<type>[bsuf]\d+)\s+(?:\.ptr\b(?:\s*\.\w+(?:\s+\d+)?)*\s+)?"
    r"(?P<name>[\w$]+)\s*(?P<sizes>(?:\[\s*\d*\s*\])*)\s*(?:=\s*(?P<value>.*))?$",
    re.DOTALL,
)


def split_operands(text: str) -> list[str]:
    """Splits at the commas that are in no bracket."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        if character in "{[(":
            depth += 1
        elif character in "}])":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:position].strip())
            start = position + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


@final
@dataclasses.dataclass
class _Body:
    """What is between the braces of an entry or a function, before calls are expanded."""

    name: str
    header: str
    parameters: list[Variable]
    results: list[Variable]
    registers: dict[str, str] = dataclasses.field(default_factory=dict)
    instructions: list[Instruction] = dataclasses.field(default_factory=list)
    labels: dict[str, int] = dataclasses.field(default_factory=dict)
    targets: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    variables: dict[str, Variable] = dataclasses.field(default_factory=dict)


def load(text: str) -> dict[str, Kernel]:
    """Reads all kernels of one PTX text, by their (mangled) names.

    Raises:
        ParseError: the text is not understood.
        UnsupportedError: a kernel calls a function that calls itself.
    """
    files = {number: path.rpartition("/")[2] for number, path in _FILE.findall(text)}
    # the only directive in a body that ends without a semicolon
    text = _LOCATION.sub(r"\g<0>;", _LINE.sub("", _COMMENT.sub(_blank, text)))
    bodies: dict[str, _Body] = {}
    variables: dict[str, Variable] = {}
    for header, content, line in _top_level(text):
        if content is None:
            if re.search(r"\.(?:entry|func|section|alias)\b", header) is None and header.strip():
                variable = _variable(re.sub(r"^\s*(?:\.(?:visible|extern|weak|common)\s*)+", "", header))
                variables[variable.name] = variable
        elif re.search(r"\.(?:entry|func)\b", header):
            body = _body(header, content, line, files)
            bodies[body.name] = body
    return {name: _finish(body, bodies, variables) for name, body in bodies.items() if ".entry" in body.header}


def _blank(comment: re.Match[str]) -> str:
    return " " + "\n" * comment[0].count("\n")


def _top_level(text: str) -> Iterator[tuple[str, str | None, int]]:
    """(declaration, None, 0) for variables and prototypes, (header, content, its first line) for what has a body."""
    position, start = 0, 0
    while position < len(text):
        found = re.compile(r"[;{]").search(text, position)
        if found is None:
            return
        if found[0] == ";":
            yield text[start : found.start()].strip(), None, 0
            start = position = found.end()
            continue
        end = _closing(text, found.start())
        if "=" in text[start : found.start()]:  # the value of a variable: its semicolon follows
            position = end
            continue
        line = 1 + text.count("\n", 0, found.end())
        yield text[start : found.start()].strip(), text[found.end() : end - 1], line
        start = position = end


def _closing(text: str, opening: int) -> int:
    depth = 0
    for found in re.compile(r"[{}]").finditer(text, opening):
        depth += 1 if found[0] == "{" else -1
        if depth == 0:
            return found.end()
    raise ParseError("a brace is never closed")


def _variable(declaration: str) -> Variable:
    found = _VARIABLE.match(declaration.strip())
    if found is None:
        raise ParseError(f"not a variable: {declaration[:200]!r}")
    dtype = dtype_of(found["type"])
    sizes = [int(size or 0) for size in re.findall(r"\[\s*(\d*)\s*\]", found["sizes"])]
    count = int(np.prod(sizes)) if sizes else 1
    itemsize = dtype.itemsize * int(found["vector"] or 1)
    align = re.search(r"\.align\s+(\d+)", found["attributes"])
    data = None
    if found["value"] is not None:
        words = [word for word in re.split(r"[\s,{}]+", found["value"]) if word]
        data = np.zeros(count * itemsize, np.uint8)
        try:
            values = np.array([_constant(word, dtype) for word in words], dtype=np.dtype(f"u{dtype.itemsize}"))
        except ValueError:
            raise UnsupportedError(f"the initial value of {found['name']} is not a list of numbers") from None
        data[: values.nbytes] = values.view(np.uint8)
    alignment = int(align[1]) if align else itemsize
    return Variable(found["name"], found["space"], alignment, count * itemsize, data)


def _constant(word: str, dtype: np.dtype) -> int:
    """The bits of a number as an initial value has it."""
    if word[:2].lower() in ("0f", "0d") and dtype.kind == "f":
        return int(word[2:], 16)
    return int(word, 0) & ((1 << 8 * dtype.itemsize) - 1)


def _body(header: str, content: str, line: int, files: dict[str, str]) -> _Body:
    found = re.search(r"\.(entry|func)\s*(\([^)]*\))?\s*([\w$]+)\s*(\(.*?\))?\s*(?:\.|$)", header, re.DOTALL)
    if found is None:
        raise ParseError(f"not the head of a kernel: {header[:200]!r}")
    lists = [[_variable(part) for part in split_operands((found[i] or "()")[1:-1])] for i in (2, 4)]
    body = _Body(found[3], header, results=lists[0], parameters=lists[1])
    _Reader(body, content, line, files).run()
    return body


@final
class _Reader:
    """Goes through the statements of one body. Names that an inner pair of braces declares get a suffix of their own."""

    def __init__(self, body: _Body, content: str, line: int, files: dict[str, str]) -> None:
        self._body, self._content, self._files = body, content, files
        self._location, self._line = "", line
        self._scopes: list[dict[str, str]] = [{}]
        self._opened = 0

    def run(self) -> None:
        content, position = self._content, 0
        while True:
            while position < len(content) and content[position].isspace():
                self._line += content[position] == "\n"
                position += 1
            if position == len(content):
                return
            if content[position] == "{":
                self._open(content[position + 1 : _closing(content, position) - 1])
                position += 1
            elif content[position] == "}":
                self._scopes.pop()
                position += 1
            elif label := _LABEL.match(content, position):
                self._last_label = self._resolve(label[1])
                self._body.labels[self._last_label] = len(self._body.instructions)
                position = label.end()
            else:
                end = content.find(";", position)
                if end < 0:
                    raise ParseError(f"{self._body.name}: no semicolon after {content[position : position + 80]!r}")
                self._statement(content[position:end].strip())
                self._line += content.count("\n", position, end)
                position = end + 1

    def _open(self, content: str) -> None:
        self._opened += 1
        labels = {found[1] for found in re.finditer(r"^\s*([A-Za-z_]\w*)\s*:(?!:)", content, re.MULTILINE)}
        self._scopes.append({label: f"{label}@{self._opened}" for label in labels})

    def _declare(self, name: str) -> str:
        if len(self._scopes) == 1:
            return name
        self._scopes[-1][name] = f"{name}@{self._opened}"
        return self._scopes[-1][name]

    def _resolve(self, text: str) -> str:
        if len(self._scopes) == 1 or not any(self._scopes):
            return text

        def one(found: re.Match[str]) -> str:
            for scope in reversed(self._scopes):
                if found[0] in scope:
                    return scope[found[0]]
            return found[0]

        return _WORD.sub(one, text)

    def _statement(self, text: str) -> None:
        if text.startswith(".reg"):
            _, kind, names = text.split(None, 2)
            for name in split_operands(names):
                run = _REGISTERS.fullmatch(name)
                for register in [f"{run[1]}{i}" for i in range(int(run[2]))] if run else [name]:
                    self._body.registers[self._declare(register)] = kind[1:]
        elif text.startswith(".branchtargets"):
            self._body.targets[self._last_label] = split_operands(self._resolve(text.split(None, 1)[1]))
        elif re.match(r"\.(?:shared|local|param)\b", text):
            variable = _variable(text)
            name = self._declare(variable.name)
            self._body.variables[name] = dataclasses.replace(variable, name=name)
        elif text.startswith(".loc"):
            places = [f"{self._files.get(file, file)}:{line}" for file, line in _PLACE.findall(text)]
            self._location = "<".join(places)
        elif not text.startswith("."):
            one = instruction(self._resolve(text))
            self._body.instructions.append(dataclasses.replace(one, location=self._location, line=self._line))


def instruction(text: str) -> Instruction:
    """One instruction from its text, without the semicolon."""
    text = " ".join(text.split())
    guard, rest = None, text
    if found := _GUARD.match(text):
        guard, rest = (found[2], found[1] == "!"), found[3]
    head, _, operands = rest.partition(" ")
    opcode, *modifiers = head.split(".")
    return Instruction(opcode, tuple(modifiers), tuple(split_operands(operands)), guard, text)


def _finish(body: _Body, bodies: dict[str, _Body], module: dict[str, Variable]) -> Kernel:
    if any(one.opcode == "call" for one in body.instructions):
        body = _Expander(bodies).expand(body)
    used = set(_WORD.findall(" ".join(" ".join(one.operands) for one in body.instructions)))
    own = list(body.variables.values())
    outer = {name: variable for name, variable in module.items() if name in used}
    shared, shared_bytes = _lay([v for v in (*own, *outer.values()) if v.space == "shared" and v.nbytes])
    local, local_bytes = _lay([v for v in own if v.space in ("local", "param")])
    parameters, offset = [], 0
    for variable in body.parameters:
        offset = -(-offset // variable.alignment) * variable.alignment
        parameters.append(Parameter(variable.name, variable.nbytes, offset))
        offset += variable.nbytes
    threads = re.search(r"\.reqntid\s+([\d, ]+)", body.header)
    return Kernel(
        name=body.name,
        parameters=parameters,
        registers=body.registers,
        instructions=body.instructions,
        labels=body.labels,
        targets=body.targets,
        shared=shared,
        shared_bytes=shared_bytes,
        local=local,
        local_bytes=-(-local_bytes // 16) * 16,
        variables={name: v for name, v in outer.items() if v.space in ("global", "const")},
        dynamic_shared=frozenset(name for name, v in outer.items() if v.space == "shared" and not v.nbytes),
        threads=int(np.prod([int(size) for size in threads[1].split(",")])) if threads else None,
    )


def _lay(variables: list[Variable]) -> tuple[dict[str, int], int]:
    """Offsets one after the other, and their sum."""
    offsets, end = {}, 0
    for variable in variables:
        end = -(-end // variable.alignment) * variable.alignment
        offsets[variable.name] = end
        end += variable.nbytes
    return offsets, end


@final
class _Expander:
    """Puts the bodies of called functions in the place of the calls; their parameters become local memory."""

    def __init__(self, bodies: dict[str, _Body]) -> None:
        self._bodies = bodies
        self._calls = 0

    def expand(self, body: _Body, above: tuple[str, ...] = ()) -> _Body:
        if body.name in above:
            raise UnsupportedError(f"{above[0]}: the function {body.name} calls itself")
        out = dataclasses.replace(body, registers=dict(body.registers), variables=dict(body.variables))
        out.instructions, out.labels = [], {}
        position: list[int] = []
        for one in body.instructions:
            position.append(len(out.instructions))
            called = self._called(one)
            if called is None:
                out.instructions.append(one)
            else:
                self._insert(out, one, self.expand(called, (*above, body.name)))
        position.append(len(out.instructions))
        out.labels.update({name: position[at] for name, at in body.labels.items()})
        return out

    def _called(self, one: Instruction) -> _Body | None:
        if one.opcode != "call":
            return None
        names = [operand for operand in one.operands if not operand.startswith("(")]
        return self._bodies.get(names[0]) if names else None

    def _insert(self, out: _Body, call: Instruction, callee: _Body) -> None:
        if call.guard is not None:
            raise UnsupportedError(f"{out.name}: a call under a predicate: {call.text}")
        self._calls += 1
        mark = f"~{self._calls}"
        actual = [operand[1:-1] for operand in call.operands if operand.startswith("(")]
        has_result = call.operands[0].startswith("(")
        names = dict.fromkeys([*callee.registers, *callee.variables, *callee.labels, *callee.targets])
        renamed = {name: name + mark for name in names}
        formal = [*(callee.results if has_result else []), *callee.parameters]
        given = [name for group in actual for name in split_operands(group)]
        renamed.update({variable.name: name for variable, name in zip(formal, given, strict=True)})
        start = len(out.instructions)

        def rename(text: str) -> str:
            return re.sub(r"[%$A-Za-z_][\w$@~]*", lambda found: renamed.get(found[0], found[0]), text)

        end = f"$end{mark}"
        for one in callee.instructions:
            if one.opcode == "ret":
                one = dataclasses.replace(
                    one, opcode="bra", modifiers=(), operands=(end,), text=f"{one.text} (of {callee.name})"
                )
            guard = None if one.guard is None else (rename(one.guard[0]), one.guard[1])
            operands = tuple(rename(operand) for operand in one.operands)
            out.instructions.append(dataclasses.replace(one, operands=operands, guard=guard))
        out.labels.update({renamed[name]: start + at for name, at in callee.labels.items()})
        out.labels[end] = len(out.instructions)
        out.registers.update({renamed[name]: kind for name, kind in callee.registers.items()})
        out.variables.update(
            {renamed[name]: dataclasses.replace(v, name=renamed[name]) for name, v in callee.variables.items()}
        )
        out.targets.update(
            {renamed[name]: [rename(label) for label in labels] for name, labels in callee.targets.items()}
        )
