"""Partial updates whose repetition has no effect, because an update without changes does nothing.

An idempotency key does not help if the user makes the same update again: a second click has a second
key. ``apply`` merges an update into the stored message and reports what changed. Put all side effects
(the write, the audit row, the event) under ``if update.changed:``.

Values are compared as they are stored:

- NaN equals NaN, whatever its bits. -0.0 differs from 0.0: it has other bytes on the wire (and proto3
  writes it, while it leaves out 0.0).
- Presence counts if the schema tracks it (messages, oneofs, proto3 ``optional``, proto2, editions): a
  field that is set to its default differs from an unset one. Without presence, both are the same.
- Repeated fields are compared in order; maps are compared regardless of order.
- Unknown fields count, in the order of their numbers. Paths can name neither them nor extensions: if
  they differ, the path of the message that holds them is reported, ``*`` for the top-level message.
- Messages of ``google.protobuf`` and ``google.type`` (Timestamp, Struct, Any, wrappers, Money…) are
  compared and replaced as a whole. An Any is compared by its bytes, so the order of a map inside it
  may count.

Of protobuf's FieldMask, only the conversion to canonical form is used. ``IsValidForDescriptor`` does
not report which path is invalid and rejects paths into groups (in editions, DELIMITED).
``MergeMessage`` does not unset a field whose parent message is absent from the source, creates empty
messages in the target, and supports neither ``*`` nor the absent mask of AIP-134.
"""

from idem_grpc.updates._apply import Changes, Update, apply
from idem_grpc.updates._compare import changed
from idem_grpc.updates._masks import UpdateRefused

__all__ = ["Changes", "Update", "UpdateRefused", "apply", "changed"]
