"""The parts of protobuf's wire format that records need.

A record is written and read for every call. Building a message object for it would take longer than
everything else that is done with the record.
"""


def varint(number: int) -> bytes:
    """Encode a number in groups of seven bits."""
    if number < 0x80:
        return b"%c" % number
    groups = bytearray()
    while number >= 0x80:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)


def field(number: int, value: bytes) -> bytes:
    """Encode a field of bytes, or one that is a message. ``number`` must be below 16."""
    size = len(value)
    if size < 0x80:
        return b"%c%c%b" % (number << 3 | 2, size, value)
    return b"%c%b%b" % (number << 3 | 2, varint(size), value)


def read_varint(data: bytes, start: int) -> tuple[int, int]:
    """Decode the number that begins at ``start``. Returns the number and where it ends.

    Raises IndexError if the data ends before the number does.
    """
    number = shift = 0
    for at in range(start, len(data)):
        number |= (data[at] & 0x7F) << shift
        if data[at] < 0x80:
            return number, at + 1
        shift += 7
    raise IndexError("the data ends within a number")
