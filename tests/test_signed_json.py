import json

import pytest

from supple.errors import InputError
from supple.signed_json import UNSIGNED, own_digest, parse, sha256, sign

RECORD = {"format": "a", "version": 3, "sha256": UNSIGNED, "value": 0.1}


def read(data):
    return parse(data, "x.json", kind="a", version=3, remedy="use another")


def test_a_signed_record_comes_back_and_knows_its_digest():
    data = sign(json.dumps(RECORD))
    found = read(data)
    assert found == RECORD | {"sha256": sha256(json.dumps(RECORD).encode())}
    assert own_digest(data, found["sha256"]) == found["sha256"]
    edited = data.replace(b"0.1", b"0.2")
    assert own_digest(edited, found["sha256"]) != found["sha256"]


REFUSED = {
    "no JSON": ('{"format"', "x.json is damaged: expected JSON, got "),
    "deep": ("[" * 100_000, "x.json is damaged"),
    "not a number": ('{"value": NaN}', "got NaN, which is no JSON"),
    "infinite": ('{"value": -Infinity}', "got -Infinity, which is no JSON"),
    "too large": ('{"value": 1e999}', "got 1e999, which is beyond every float"),
    "a key twice": ('{"value": 1, "value": 2}', "got value twice in an object"),
    "no object": ("[1]", "expected format a, got [1]; use another"),
    "another format": ('{"format": "b"}', "x.json is foreign or damaged: expected format a, got"),
    "a newer version": (
        '{"format": "a", "version": 4}',
        "expected format version 3, got 4, of a newer supple; upgrade supple or use another",
    ),
    "an older version": (
        '{"format": "a", "version": 2}',
        "version 3, got 2, of an older supple; use the supple that wrote it, or use another",
    ),
    "no version": ('{"format": "a"}', "format version 3, got None, damaged; use another"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_two_readers_could_read_differently_is_refused(kind):
    text, expected = REFUSED[kind]
    with pytest.raises(InputError) as caught:
        read(text.encode())
    assert expected in str(caught.value) and "\n" not in str(caught.value)
