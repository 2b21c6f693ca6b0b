"""Runs a function block in IEC 61131-3 Structured Text, so that the tests run the very file that an electrician pastes.

As much of the language as docs/plc/edge_inspect.st uses: VAR sections with BOOL, UINT, UDINT, DINT and arrays of them,
assignments, IF, WHILE, and integer arithmetic that wraps at the width of its type. Anything else is a ValueError.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

WIDTHS = {"UINT": (16, False), "UDINT": (32, False), "DINT": (32, True)}
TOKEN = re.compile(r"\s*(:=|<>|>=|<=|[-+=<>()\[\];]|\d+|[A-Za-z_]\w*)")
WORDS = {"AND": "and", "OR": "or", "NOT": "not", "MOD": "%", "TRUE": "True", "FALSE": "False", "=": "==", "<>": "!="}


class Integer(int):
    """An integer of a fixed width: sums and differences wrap."""

    kind: str

    def __new__(cls, value: int, kind: str) -> Integer:
        bits, signed = WIDTHS[kind]
        value &= (1 << bits) - 1
        if signed and value >> (bits - 1):
            value -= 1 << bits
        number = super().__new__(cls, value)
        number.kind = kind
        return number

    def __add__(self, other: int) -> Integer:
        return Integer(int(self) + int(other), self.kind)

    def __sub__(self, other: int) -> Integer:
        return Integer(int(self) - int(other), self.kind)

    def __mod__(self, other: int) -> Integer:
        return Integer(int(self) % int(other), self.kind)


class FunctionBlock:
    """One instance of the block in `path`; variables are attributes, `scan` runs the body once."""

    def __init__(self, path: Path, **inputs: int) -> None:
        text = re.sub(r"\(\*.*?\*\)", " ", path.read_text(encoding="ascii"), flags=re.DOTALL)
        head, body = re.fullmatch(
            r"\s*FUNCTION_BLOCK\s+\w+(.*END_VAR)(.*)END_FUNCTION_BLOCK\s*", text, re.DOTALL
        ).groups()  # type: ignore[union-attr]
        self.__dict__["_kinds"] = {}
        for section in re.findall(r"\bVAR(?:_INPUT|_OUTPUT| RETAIN)?\b(.*?)END_VAR", head, re.DOTALL):
            for declaration in filter(None, map(str.strip, section.split(";"))):
                self._declare(declaration)
        exec(
            compile("def body(s):\n" + "\n".join(_translate(body, set(self._kinds))), str(path), "exec"), self.__dict__
        )
        for name, value in inputs.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        kind = self._kinds[name]  # an unknown variable is an error, as for a compiler
        self.__dict__[name] = bool(value) if kind == "BOOL" else Integer(value, kind)

    def scan(self, **inputs: int) -> None:
        for name, value in inputs.items():
            setattr(self, name, value)
        self.__dict__["body"](self)

    def _declare(self, declaration: str) -> None:
        name, kind, length, default = re.fullmatch(
            r"(\w+)\s*:\s*(?:ARRAY\[0\.\.(?P<n>\d+)\]\s+OF\s+)?(?P<kind>\w+)(?:\s*:=\s*(?P<d>\w+))?", declaration
        ).group(1, "kind", "n", "d")  # type: ignore[union-attr]
        if name in self._kinds or (kind != "BOOL" and kind not in WIDTHS):
            raise ValueError(declaration)
        self._kinds[name] = kind
        if length is None:
            setattr(self, name, {"TRUE": 1, "FALSE": 0, None: 0}.get(default) if kind == "BOOL" else int(default or 0))
        else:
            self.__dict__[name] = [Integer(0, kind)] * (int(length) + 1)


def _translate(body: str, known: set[str]) -> list[str]:
    tokens, at = [], 0
    while body[at:].strip():
        match = TOKEN.match(body, at)
        if match is None:
            raise ValueError(body[at : at + 40])
        tokens.append(match.group(1))
        at = match.end()
    lines: list[str] = []
    depth = 1

    def until(stop: str) -> str:
        words = []
        while tokens[0] != stop:
            words.append(tokens.pop(0))
        tokens.pop(0)
        return _expression(words, known)

    while tokens:
        word = tokens.pop(0)
        if word in ("IF", "WHILE"):
            lines.append(
                "    " * depth + ("if " if word == "IF" else "while ") + until("THEN" if word == "IF" else "DO") + ":"
            )
            depth += 1
        elif word in ("ELSIF", "ELSE"):
            lines.append("    " * (depth - 1) + ("else:" if word == "ELSE" else "elif " + until("THEN") + ":"))
        elif word in ("END_IF", "END_WHILE"):
            depth -= 1
            if tokens.pop(0) != ";":
                raise ValueError(f"{word} without ;")
        else:
            target = [word]
            while tokens[0] != ":=":
                target.append(tokens.pop(0))
            tokens.pop(0)
            left, right = _expression(target, known), until(";")
            if len(target) > 1:  # an element keeps the type of its array
                right = f"type({left})({right}, {left}.kind)"
            lines.append("    " * depth + f"{left} = {right}")
    if depth != 1:
        raise ValueError("a block is not closed")
    return lines


def _expression(words: list[str], known: set[str]) -> str:
    translated = []
    for word in words:
        if word in WORDS:
            translated.append(WORDS[word])
        elif word in known:
            translated.append("s." + word)
        elif re.fullmatch(r"[A-Za-z_]\w*", word):
            raise ValueError(f"undeclared: {word}")
        else:
            translated.append(word)
    return " ".join(translated)
