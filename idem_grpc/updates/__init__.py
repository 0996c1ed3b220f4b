"""Updates that are safe to send twice, because an update that changes nothing does nothing.

A key does not help where the same update is made anew: a second click bears a second key.
``apply`` merges an update into what is stored and tells what really changed, and ``if
update.changed:`` is then the one place for side effects: the write, the audit row, the event.

Two values are the same here if they are stored alike:

- NaN is the same as NaN, whatever its bits; -0.0 is not 0.0, for it is another value on the wire
  (and in proto3 it is written, while 0.0 is left out).
- Presence counts where the schema has it (messages, oneofs, proto3 ``optional``, proto2, editions):
  a field that is set to its default is not one that is unset. Elsewhere there is no difference to see.
- Repeated fields are compared in order, maps without.
- Unknown fields count, in the order of their numbers. No path names them, nor extensions: where they
  differ, the path of the message that holds them stands for them, which is ``*`` at the top.
- Messages of ``google.protobuf`` and ``google.type`` (Timestamp, Struct, Any, wrappers, Money…) are
  values: they differ, and are replaced, whole. An Any is its bytes, so a map inside one may differ by
  its order.

protobuf's FieldMask brings masks into canonical form here. Its other methods are not used:
``IsValidForDescriptor`` tells neither which path is wrong nor takes paths into groups (in editions,
DELIMITED); ``MergeMessage`` leaves a field alone if the message above it is absent from the source,
although the mask asks for the value there, which is none; it makes a message to hold such a none;
and it knows neither ``*`` nor the absent mask of AIP-134.
"""

from idem_grpc.updates._apply import Changes, Update, apply
from idem_grpc.updates._compare import changed
from idem_grpc.updates._masks import UpdateRefused

__all__ = ["Changes", "Update", "UpdateRefused", "apply", "changed"]
