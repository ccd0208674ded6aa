"""The SBE schema of the wire (FIX Simple Binary Encoding 1.0), generated from the field tables.

The schema is for one model: the number of features and of outputs is part of a message's layout. Standard:
https://www.fixtrading.org/standards/sbe-online/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum, IntFlag
from typing import Final
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from sigd.wire import fields
from sigd.wire.fields import HEADER_BYTES, SCHEMA_ID, SCHEMA_SEMANTIC_VERSION, SCHEMA_VERSION, Field, Message
from sigd.wire.layout import request_frame_bytes, response_frame_bytes
from sigd.wire.schema.named import NamedColumns, NamedModel, identifiers
from sigd.wire.status import GoodbyeCode, HelloFlag, RejectCode, RequestFlag, Status, Transport

NAMESPACE: Final = "http://fixprotocol.io/2016/sbe"
_FIRST_VERSION: Final = "1"

_PRIMITIVES: Final = {
    "u8": "uint8",
    "u16": "uint16",
    "u32": "uint32",
    "u64": "uint64",
    "f32": "float",
    "char": "char",
}
_HEADER_NAMES: Final = {
    "block_length": "blockLength",
    "template_id": "templateId",
    "schema_id": "schemaId",
    "version": "version",
}
_ENUMS: Final = (
    (Status, "outcome of one request"),
    (RejectCode, "why the daemon ended a connection"),
    (GoodbyeCode, "why a side says Goodbye"),
    (Transport, "how requests and responses travel"),
)
NAMED_TYPES: Final[dict[tuple[str, str], type[IntEnum | IntFlag]]] = {
    ("Hello", "transport"): Transport,
    ("Hello", "flags"): HelloFlag,
    ("Welcome", "transport"): Transport,
    ("Welcome", "flags"): HelloFlag,
    ("Reject", "code"): RejectCode,
    ("Goodbye", "code"): GoodbyeCode,
    ("SignalRequest", "flags"): RequestFlag,
    ("SignalResponse", "status"): Status,
}
"""Fields whose numbers have names, by message and field."""


def schema_xml(features: int, outputs: int, model: NamedModel | None = None) -> str:
    """The schema as an XML document, for a model of `features` features and `outputs` outputs. With `model`
    the rows have a field for each of its tensors, in place of one array.

    Raises:
        ValueError: no frame can carry that many features or outputs.
    """
    block_bytes = {
        fields.SIGNAL_REQUEST.template_id: request_frame_bytes(features) - HEADER_BYTES,
        fields.SIGNAL_RESPONSE.template_id: response_frame_bytes(outputs) - HEADER_BYTES,
    }
    counts = {"features": features, "outputs": outputs}
    root = Element(
        f"{{{NAMESPACE}}}messageSchema",
        {
            "package": "sigd",
            "id": str(SCHEMA_ID),
            "version": str(SCHEMA_VERSION),
            "semanticVersion": SCHEMA_SEMANTIC_VERSION,
            "byteOrder": "littleEndian",
            "headerType": "messageHeader",
            "description": f"sigd, for a model of {features} features and {outputs} outputs",
        },
    )
    types = SubElement(root, "types")
    _add_header(types)
    _add_field_types(types, counts)
    for enumeration, description in _ENUMS:
        _add_enum(types, enumeration, description)
    _add_set(types, HelloFlag, "what a client asks for, and is granted")
    _add_set(types, RequestFlag, "with history: what happens to the steps of an instrument")
    named = {} if model is None else {"features": model.features, "outputs": model.outputs}
    for columns in named.values():
        _add_column_types(types, columns)
    for message in fields.MESSAGES:
        length = block_bytes.get(message.template_id) or (message.frame_bytes or 0) - HEADER_BYTES
        _add_message(root, message, length, named)
    ElementTree.register_namespace("sbe", NAMESPACE)
    ElementTree.indent(root, "    ")
    body = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n{body}\n'


def _add_header(types: Element) -> None:
    composite = SubElement(types, "composite", name="messageHeader", description="stands before every block")
    for field in fields.HEADER:
        SubElement(
            composite,
            "type",
            name=_HEADER_NAMES[field.name],
            primitiveType=_PRIMITIVES[field.kind],
            description=field.meaning,
        )


def _add_field_types(types: Element, counts: dict[str, int]) -> None:
    """One named type for each shape of field that the messages use."""
    shapes = {}
    for message in fields.MESSAGES:
        for field in message.fields:
            if (message.name, field.name) not in NAMED_TYPES:
                shapes[_shape_name(field)] = field
    for name, field in shapes.items():
        element = SubElement(types, "type", name=name, primitiveType=_PRIMITIVES[field.kind])
        length = field.count if isinstance(field.count, int) else counts[field.count]
        if length != 1 or isinstance(field.count, str):
            element.set("length", str(length))
        if field.kind == "char":
            element.set("characterEncoding", "UTF-8")
            element.set("description", "zero-padded")
        elif field.count == "outputs":
            # NaN is what SBE means by a float that is not there
            element.set("presence", "optional")
            element.set("description", "NaN where there is no answer")
        elif name == "Deadline":
            element.set("presence", "optional")
            element.set("nullValue", "0")


def _shape_name(field: Field) -> str:
    if isinstance(field.count, str):
        return field.count.capitalize()
    if field.name == "deadline_ns":
        return "Deadline"
    if field.count == 1:
        return field.kind.upper()
    return f"{field.kind.capitalize()}Array{field.count}"


def _add_enum(types: Element, enumeration: type[IntEnum], description: str) -> None:
    element = SubElement(
        types, "enum", name=enumeration.__name__, encodingType="uint16", description=description
    )
    for member in enumeration:
        SubElement(element, "validValue", name=member.name).text = str(member.value)


def _add_set(types: Element, flags: type[IntFlag], description: str) -> None:
    element = SubElement(types, "set", name=flags.__name__, encodingType="uint16", description=description)
    for member in flags:
        # iterating over an IntFlag gives its single bits; SBE counts positions
        SubElement(element, "choice", name=member.name or "").text = str(member.value.bit_length() - 1)


def _add_column_types(types: Element, columns: Sequence[NamedColumns]) -> None:
    known = {element.get("name") for element in types}
    for one in columns:
        if (name := _columns_type(one)) not in known:
            known.add(name)
            SubElement(types, "type", name=name, primitiveType="float", length=str(one.width))


def _columns_type(one: NamedColumns) -> str:
    return f"Columns{one.width}"


def _add_message(
    root: Element, message: Message, block_bytes: int, named_columns: Mapping[str, Sequence[NamedColumns]]
) -> None:
    element = SubElement(
        root,
        f"{{{NAMESPACE}}}message",
        name=message.name,
        id=str(message.template_id),
        blockLength=str(block_bytes),
        description=message.meaning,
        sinceVersion=_FIRST_VERSION,
    )
    for field_id, field in enumerate(message.fields, 1):
        columns = named_columns.get(str(field.count), ())
        if columns:
            names = identifiers((one.name for one in columns), [other.name for other in message.fields])
            for number, (one, name) in enumerate(zip(columns, names, strict=True)):
                SubElement(
                    element,
                    "field",
                    name=name,
                    id=str(field_id + number),
                    type=_columns_type(one),
                    offset=str(field.offset - HEADER_BYTES + 4 * one.first),
                    description=one.meaning,
                )
            continue
        named = NAMED_TYPES.get((message.name, field.name))
        SubElement(
            element,
            "field",
            name=field.name,
            id=str(field_id),
            type=named.__name__ if named else _shape_name(field),
            offset=str(field.offset - HEADER_BYTES),
            description=field.meaning,
        )


def _assert_named_types() -> None:
    """Every name stands for a field of the width that enums and sets are written with."""
    known = {(message.name, field.name): field for message in fields.MESSAGES for field in message.fields}
    for key in NAMED_TYPES:
        assert (known[key].kind, known[key].count) == ("u16", 1), key


_assert_named_types()
