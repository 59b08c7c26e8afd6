"""Values from bytes: the same bytes give the same value, so that a small file repeats a finding."""

import json
import random

# Lengths around the limits of the code: 64 KiB (`large_json.LONG`), 32,768 (a prompt), ...
LENGTHS = (0, 1, 2, 60, 90, 400, 513, 4097, 5_000, 32_000, 33_000, 70_000)
# Levels around the limits: 60 (`problems.MAX_DEPTH`), 3 (messages), Python's 1000 frames.
LEVELS = (2, 4, 30, 58, 61, 120, 240, 320, 400, 480, 600, 800, 900, 960, 985, 2_000, 20_000)
CHARACTERS = [
    *("a", "Z", "0", "9", " ", "\n", "\t", "\r", "\0", "\x1b", "\x7f", "\x85", "\u2028", "\u202e"),
    *("ä", "İ", "ß", "ﬀ", "ﷺ", "１", "٣", "😀", "\ud83d", "\udfff", "\ufeff", "\ufffd"),
    *('"', "'", "\\", "/", ".", "..", ":", ";", ",", "<", ">", "(", ")", "[", "]", "{", "}"),
    *("|", "#", "@", "&", "?", "%", "%00", "*", "=", "+", "-", "_", "__", "$$", "~", "!"),
]
WORDS = [
    *("a fox", "lora", "<lora:x:0.5>", "<lora:x", "BREAK ", " AND ", "(a:1.2)", "[a:b:0.5]"),
    "[a|b]",
    *("{2$$a|b}", "__colors__", "embedding:x", "https://", "http://", "://"),
    "civitai.com/models/1",
    *("huggingface.co/a/b/resolve/main/c.safetensors", "urn:air:sd1:lora:civitai:1@2", "sha256:"),
    *("0" * 64, "null", "true", "None", "NaN", "1e999", "0x10", "1_0", "-0"),
    *("9" * 19, "Steps: 1, "),
    *("Negative prompt: ", "Size: 1x1", "data:image/png;base64,", "user:pass@", "?token=secret"),
    *("../../etc/passwd", "C:\\x", "\\\\x", "con", "x.safetensors", "x.ckpt", "x.pt", "x.png"),
]
# JSON that Python's own values do not have.
RAW = [
    *("NaN", "-Infinity", "1e999", "-0", "-0.0", "1E400", "0.1e-400", "9" * 400, "-" + "9" * 5000),
    *('"\\ud800"', '"\\udfff\\ud800"', '{"a": 1, "a": 2}', "[]", "{}", '""', "null", "true"),
    "false",
    *("18446744073709551616", "-9223372036854775809", "9007199254740993", "1e15", "01", "'a'"),
]
_MARK = "\x01raw{}\x01"


class FromBytes(random.Random):
    """Draws from bytes instead of a generator, and zeros after their end."""

    def __new__(cls, _data=b""):
        return super().__new__(cls, 0)

    def __init__(self, data=b""):
        self.gauss_next = None
        self._data, self._at = data, 0

    def bytes_of(self, count):
        """The next bytes, with zeros after their end."""
        found = self._data[self._at : self._at + count]
        self._at += count
        return found + bytes(count - len(found))

    def rest(self):
        """All bytes that are left."""
        found, self._at = self._data[self._at :], len(self._data)
        return found

    def getrandbits(self, k):
        count = (k + 7) // 8
        return int.from_bytes(self.bytes_of(count), "little") >> (8 * count - k)

    def random(self):
        return int.from_bytes(self.bytes_of(2), "little") / 65_536


class Draw(FromBytes):
    """Texts, bytes and JSON with odd parts.

    Attributes:
        made: characters and bytes that were made, by which the time of a target is judged.
    """

    def __init__(self, data=b""):
        super().__init__(data)
        self.made = len(data)
        self._raw = []

    # Texts -----------------------------------------------------------------------------------

    def counted(self, value):
        """The same value, whose length counts for the time that its use may take."""
        self.made += len(value)
        return value

    def piece(self):
        kind = self.randrange(4)
        if kind == 0:
            return self.bytes_of(self.randrange(12)).decode("latin-1")
        return self.choice(CHARACTERS if kind == 1 else WORDS)

    def text(self, words=()):
        """A text: words, odd characters, or one piece many times; `words` are of its grammar."""
        kind = self.randrange(6)
        pieces = [
            self.choice(words) if words and self.randrange(3) else self.piece()
            for _ in range(1 + self.randrange(8))
        ]
        text = "".join(pieces)
        if kind == 0 and text:
            length = self.choice(LENGTHS)
            text = (text * (length // len(text) + 1))[:length]
        if kind == 1:
            text += self.choice(WORDS)
        return self.counted(text)

    def blob(self, seeds):
        """Bytes: one of the seeds with some changes, or all that is left."""
        if not seeds or not self.randrange(8):
            return self.counted(self.rest())
        found = bytearray(self.choice(seeds))
        for _ in range(self.randrange(6)):
            self._change_bytes(found)
        return self.counted(bytes(found))

    def _change_bytes(self, found):
        at = self.randrange(len(found) + 1) if self.randrange(2) else self.randrange(64)
        at = min(at, len(found))
        kind = self.randrange(6)
        if kind == 0:
            del found[at:]
        elif kind == 1:
            del found[at : at + 1 + self.randrange(16)]
        elif kind == 2:
            found[at:at] = self.bytes_of(1 + self.randrange(8))
        elif kind == 3:
            found[at : at + 1] = self.bytes_of(1)
        elif kind == 4:
            width = self.choice((1, 2, 4, 8))
            number = self.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 255, 65_535))
            order = self.choice(("little", "big"))
            found[at : at + width] = (number % 256**width).to_bytes(width, order)
        else:
            part = bytes(found[at : at + 1 + self.randrange(64)])
            found[at:at] = part * self.choice((1, 2, 100, 3_000))

    # JSON ------------------------------------------------------------------------------------

    def json(self, seeds, words=()):
        """A JSON document as bytes: one of the seeds with some changes."""
        value = self.choice(seeds) if seeds else self.scalar(words)
        for _ in range(self.randrange(5)):
            value = self._changed(value, words)
        text = json.dumps(value)
        for number, raw in enumerate(self._raw):
            text = text.replace(json.dumps(_MARK.format(number)), raw)
        self._raw.clear()
        document = text.encode("utf-8", "surrogatepass")
        if not self.randrange(16):
            changed = bytearray(document)
            self._change_bytes(changed)
            document = bytes(changed)
        return self.counted(document)

    def raw(self, text):
        """A text that stands for this JSON until the document is written."""
        self._raw.append(text)
        return _MARK.format(len(self._raw) - 1)

    def scalar(self, words=()):
        kind = self.randrange(7)
        if kind < 3:
            return self.text(words)
        if kind == 3:
            return self.raw(self.choice(RAW))
        if kind == 4:
            return self.choice([None, True, False, 0, 1, -1, 2, 0.5, 2**31, 2**63, 1e30])
        return self.randrange(300) if kind == 5 else self.random() * 10

    def _changed(self, value, words):
        """The value with one change somewhere in it."""
        if isinstance(value, dict) and value and self.randrange(6):
            key = self.choice([*value])
            if not self.randrange(12):
                return {name: one for name, one in value.items() if name != key}
            return {**value, key: self._changed(value[key], words)}
        if isinstance(value, list) and value and self.randrange(6):
            at = self.randrange(len(value))
            return [*value[:at], self._changed(value[at], words), *value[at + 1 :]]
        return self._instead(value, words)

    def _instead(self, value, words):
        kind = self.randrange(9)
        if kind == 0:
            return self._nested(value)
        if kind == 1:
            is_short = value is None or (isinstance(value, str) and len(value) < 5)
            return [value] * self.choice((0, 1, 2, 3_000) if is_short else (0, 1, 2, 9))
        if kind == 2:
            return {self.text(words): value}
        if isinstance(value, dict) and kind < 5:
            more = {f"k{number}": number for number in range(self.choice((3, 60, 2_500)))}
            return value | ({self.text(words): self.scalar(words)} if kind == 3 else more)
        if isinstance(value, str) and kind < 5:
            at = self.randrange(len(value) + 1)
            return value[:at] + self.text(words) + value[at:]
        return self.scalar(words)

    def _nested(self, value):
        """The value inside many lists or objects."""
        levels = self.choice(LEVELS)
        begin, end = self.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
        inner = json.dumps(value)
        return self.raw(begin * levels + (inner if len(inner) < 10_000 else "1") + end * levels)
