"""Pickles are followed instruction by instruction. The tests of the readers have whole files, also hostile ones."""

import pickle
import pickletools

import pytest

from common.io.pickles import Call, Items, Stored, Unexpected, content, follow


def test_values_come_back():
    """Numbers, constants, tuples, shared lists and dicts, in every protocol with strings that can be read in place."""
    shared = [1, 2.5, -(2**100), None, True, False]
    value = ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), shared, shared, {7: [], 8: {}})
    for protocol in range(1, 6):
        data = b"before" + pickle.dumps(value, protocol) + b"behind"
        found, end = follow(data, (), start=6)
        assert found == (*value[:7], [(7, []), (8, Items())])
        assert found[5] is found[6]
        assert data[end:] == b"behind"


@pytest.mark.parametrize("protocol", range(1, 6))
@pytest.mark.parametrize("text", [b"ab", b"\x00\xff" * 200])
def test_strings_stay_where_they_are(protocol, text):
    data = pickle.dumps([text], protocol)
    (found,), _ = follow(data, {"_codecs.encode"})
    assert content(data, found) == text


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a damaged pickle|a pickle that is cut short"),
        (b"N", "a pickle that is cut short|a damaged pickle"),
        (b".", "an instruction without its argument"),
        (b"(.", "an instruction without its argument"),
        (b"l.", "an end without a beginning"),
        (b"NNa.", "items for something that is no list"),
        (b"N(Ne.", "items for something that is no list"),
        (b"]NNs.", "keys and values for something that is no dict"),
        (b"}(Nu.", "keys and values for something that is no dict"),
        (b"h\x00.", "a reference to nothing"),
        (b"N)R.", "a call of something that is no function"),
        (b"cos\nsystem\n)R.", "a call of 'os.system'"),
        (b"cgood\nname\nNR.", "a call of 'good.name'"),
        (b"cgood\nname\nNb.", "a state for something that is no object"),
        (b"NN\x93.", "something else in place of a name"),
        (b"U\x01\xffU\x01a\x93.", "a name that is not UTF-8"),
        (b"S'text'\n.", "text of pickle protocol 0; write it again with protocol 2 or later"),
        (b"\x8a\x11" + b"\x01" * 17 + b".", "a number of more than 128 bits"),
        (b"c_codecs\nencode\nU\x01aU\x05ascii\x86R.", "an encoding other than latin1"),
        (b"ccollections\nOrderedDict\n]Na\x85R.", "an OrderedDict of something else than pairs"),
    ],
)
def test_what_is_refused(data, message):
    with pytest.raises(Unexpected, match=f"^({message})"):
        follow(data, {"good.name", "_codecs.encode", "collections.OrderedDict"})


def test_calls_are_named_and_not_made():
    assert follow(b"cgood\nname\nK\x07\x85R.", {"good.name"})[0] == Call("good.name", (7,))
    assert follow(b"K\x07Q.", ())[0] == Stored(7)


REFUSED = {
    *("POP", "DUP", "POP_MARK", "UNICODE", "DICT", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID"),
    *("EXT1", "EXT2", "EXT4", "EMPTY_SET", "ADDITEMS", "FROZENSET", "NEXT_BUFFER", "READONLY_BUFFER"),
}


def test_every_other_instruction_is_refused_by_name():
    """Each opcode at the start of a pickle; the known ones lack their arguments there, which gives other messages."""
    refused = set()
    for opcode in pickletools.opcodes:
        with pytest.raises(Unexpected) as caught:
            follow(opcode.code.encode("latin-1") + b"0\n0\n" + bytes(20), ())
        if str(caught.value) == f"the instruction {opcode.name}":
            refused.add(opcode.name)
    assert refused == REFUSED


def test_one_list_cannot_become_very_many_dicts():
    """70 kB that asked for 10,000 copies of one list of 1,000 pairs."""
    pairs = pickle.dumps([[i, i] for i in range(1000)], 2)[2:-1] + b"q\xff"  # remembered at 255
    copies = b"".join(b"ccollections\nOrderedDict\nh\xff\x85R" for _ in range(10_000))
    with pytest.raises(Unexpected, match="more values than the file has bytes"):
        follow(b"\x80\x02(" + pairs + copies + b"t.", {"collections.OrderedDict"})
