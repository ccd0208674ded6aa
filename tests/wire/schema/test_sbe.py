"""The generated SBE schema: its own rules, and frames decoded with it by a decoder that is not ours."""

from __future__ import annotations

import io
import struct
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import sbe

from sigd.wire import fields
from sigd.wire.client.request_outbox import RequestOutbox
from sigd.wire.inbox import RequestInbox
from sigd.wire.messages import Goodbye, Heartbeat, Hello, Reject, Welcome
from sigd.wire.outbox import ResponseOutbox
from sigd.wire.schema.sbe import NAMESPACE, schema_xml
from sigd.wire.status import GoodbyeCode, HelloFlag, RejectCode, Status, Transport

FEATURES = 6
OUTPUTS = 3
ROOT = ElementTree.fromstring(schema_xml(FEATURES, OUTPUTS).encode())
MESSAGES = ROOT.findall(f"{{{NAMESPACE}}}message")
PRIMITIVE_BYTES = {"char": 1, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "float": 4}
# Attributes that the standard's own XML schema knows for each element.
ATTRIBUTES = {
    "messageSchema": {
        *("package", "id", "version", "semanticVersion", "description", "byteOrder", "headerType"),
    },
    "types": set(),
    "composite": {"name", "description"},
    "type": {
        *("name", "primitiveType", "length", "nullValue", "presence", "characterEncoding", "description"),
    },
    "enum": {"name", "encodingType", "description"},
    "validValue": {"name", "description"},
    "set": {"name", "encodingType", "description"},
    "choice": {"name", "description"},
    "message": {"name", "id", "blockLength", "description", "sinceVersion"},
    "field": {"name", "id", "type", "offset", "description"},
}


def type_bytes() -> dict[str, int]:
    """The size of each named type of the schema."""
    types = ROOT.find("types")
    assert types is not None
    sizes = {}
    for element in types:
        if element.tag == "type":
            sizes[element.attrib["name"]] = PRIMITIVE_BYTES[element.attrib["primitiveType"]] * int(
                element.get("length", "1")
            )
        elif element.tag in ("enum", "set"):
            sizes[element.attrib["name"]] = PRIMITIVE_BYTES[element.attrib["encodingType"]]
    return sizes


class TestSchema:
    def test_elements_and_attributes_are_the_standards(self) -> None:
        assert ROOT.tag == f"{{{NAMESPACE}}}messageSchema"
        for element in ROOT.iter():
            name = element.tag.removeprefix(f"{{{NAMESPACE}}}")
            assert (element.tag != name) == (name in ("messageSchema", "message")), "others have no namespace"
            assert set(element.attrib) <= ATTRIBUTES[name]
        assert [child.tag for child in ROOT] == ["types"] + [f"{{{NAMESPACE}}}message"] * 8

    def test_head(self) -> None:
        assert ROOT.attrib["id"] == "91"
        assert ROOT.attrib["version"] == "1"
        assert ROOT.attrib["byteOrder"] == "littleEndian"
        assert ROOT.attrib["headerType"] == "messageHeader"
        header = ROOT.findall("./types/composite[@name='messageHeader']/type")
        assert [(part.attrib["name"], part.attrib["primitiveType"]) for part in header] == [
            ("blockLength", "uint16"),
            ("templateId", "uint16"),
            ("schemaId", "uint16"),
            ("version", "uint16"),
        ]

    def test_names_of_types_are_unique_and_all_are_used(self) -> None:
        types = [element.attrib["name"] for element in ROOT.findall("./types/*")]
        assert len(types) == len(set(types))
        used = {field.attrib["type"] for message in MESSAGES for field in message}
        assert used | {"messageHeader"} == set(types)

    @pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.attrib["name"])
    def test_fields_fill_the_block_without_gap_or_overlap(self, message: ElementTree.Element) -> None:
        sizes = type_bytes()
        end = 0
        for field_id, field in enumerate(message, 1):
            assert field.attrib["id"] == str(field_id)
            assert int(field.attrib["offset"]) == end
            end += sizes[field.attrib["type"]]
        padding_bytes = int(message.attrib["blockLength"]) - end
        assert padding_bytes == (4 if message.attrib["name"] == "SignalResponse" else 0)

    def test_messages_are_the_tables(self) -> None:
        assert {
            (message.attrib["name"], int(message.attrib["id"])): [
                (field.attrib["name"], int(field.attrib["offset"]) + 8) for field in message
            ]
            for message in MESSAGES
        } == {
            (message.name, message.template_id): [(field.name, field.offset) for field in message.fields]
            for message in fields.MESSAGES
        }

    @pytest.mark.parametrize(
        ("name", "length"),
        [
            ("Hello", 72),
            ("Welcome", 120),
            ("Reject", 72),
            ("Heartbeat", 8),
            ("Goodbye", 8),
            ("ModelInfo", 72),
            ("SignalRequest", 288),
            ("SignalResponse", 64),
        ],
    )
    def test_block_lengths(self, name: str, length: int) -> None:
        root = ElementTree.fromstring(schema_xml(64, 3).encode())
        message = root.find(f"{{{NAMESPACE}}}message[@name='{name}']")
        assert message is not None
        assert message.attrib["blockLength"] == str(length)

    def test_every_named_number_is_in_the_schema(self) -> None:
        for enumeration in (Status, RejectCode, GoodbyeCode, Transport):
            values = ROOT.findall(f"./types/enum[@name='{enumeration.__name__}']/validValue")
            assert {value.attrib["name"]: int(value.text or "") for value in values} == {
                member.name: member.value for member in enumeration
            }
        bits = ROOT.findall("./types/set[@name='HelloFlag']/choice")
        assert {bit.attrib["name"]: 1 << int(bit.text or "") for bit in bits} == {
            "CONFLATE": HelloFlag.CONFLATE,
            "HISTORY": HelloFlag.HISTORY,
            "TAKES_NAN": HelloFlag.TAKES_NAN,
        }

    @pytest.mark.parametrize(("features", "outputs"), [(0, 1), (1, 0), (16_374, 1), (1, 16_371)])
    def test_sizes_that_no_frame_carries(self, features: int, outputs: int) -> None:
        with pytest.raises(ValueError, match="carries 1 to"):
            schema_xml(features, outputs)

    def test_the_same_every_time(self) -> None:
        assert schema_xml(64, 3) == schema_xml(64, 3)
        assert schema_xml(64, 3) != schema_xml(65, 3)


@pytest.fixture(scope="module")
def decoder() -> Any:
    """sbe 0.4.3 with our schema. It knows no other encoding of characters than ASCII, so that attribute is
    left out."""
    xml = schema_xml(FEATURES, OUTPUTS).replace(' characterEncoding="UTF-8"', "")
    return sbe.Schema.parse(io.BytesIO(xml.encode()))


def request_frame() -> bytes:
    row = np.arange(10, 10 + FEATURES, dtype=np.float32)
    return bytes(RequestOutbox(FEATURES).encode_single(row, 2**64 - 1, 2**63, 12_345, 2**32 - 1))


class TestOtherDecoder:
    """`decode` reads in order, `wrap` reads by offset; of an array both know only the first element."""

    def test_hello(self, decoder: Any) -> None:
        hello = Hello(64, 3, Transport.SHARED_MEMORY, HelloFlag.CONFLATE, 256, "engine-1", "lob-mlp")
        message = decoder.decode(hello.encode())
        assert message.message_name == "Hello"
        assert message.header == {"blockLength": 72, "templateId": 1, "schemaId": 91, "version": 1}
        assert message.value == {
            "features": 64,
            "outputs": 3,
            "transport": "SHARED_MEMORY",
            "flags": ["CONFLATE"],
            "ring_slots": 256,
            "client_name": "engine-1",
            "model_name": "lob-mlp",
        }

    def test_welcome(self, decoder: Any) -> None:
        welcome = Welcome(
            64, 3, 256, 7, 4321, 2**63, bytes([200] * 32), "lob-mlp", 0, 3, 8, 320, 128, 50, 1000
        )
        value = decoder.decode(welcome.encode()).value
        assert value.pop("model_sha256") == 200
        del value["model_name"]  # stands behind an array, and so is misread
        assert value == {
            "features": 64,
            "outputs": 3,
            "in_flight_max": 256,
            "model_generation": 7,
            "daemon_pid": 4321,
            "clock_ns": 2**63,
            "transport": "STREAM",
            "flags": ["CONFLATE", "HISTORY"],
            "ring_slots": 8,
            "request_stride": 320,
            "response_stride": 128,
            "history_steps": 50,
            "history_instruments_max": 1000,
        }

    @pytest.mark.parametrize("code", RejectCode)
    def test_reject(self, decoder: Any, code: RejectCode) -> None:
        value = decoder.decode(Reject(code, "63 features, the model has 64").encode()).value
        assert value == {
            "code": code.name,
            "reserved16": 0,
            "reserved32": 0,
            "reason": "63 features, the model has 64",
        }

    def test_heartbeat(self, decoder: Any) -> None:
        assert decoder.decode(Heartbeat(2**64 - 2).encode()).value == {"clock_ns": 2**64 - 2}

    @pytest.mark.parametrize("code", GoodbyeCode)
    def test_goodbye(self, decoder: Any, code: GoodbyeCode) -> None:
        assert decoder.decode(Goodbye(code).encode()).value == {"code": code.name, "reserved": 0}

    def test_request(self, decoder: Any) -> None:
        message = decoder.decode(request_frame())
        assert message.message_name == "SignalRequest"
        assert message.header["blockLength"] == len(request_frame()) - 8
        assert message.value == {
            "sequence": 2**64 - 1,
            "client_time_ns": 2**63,
            "deadline_ns": 12_345,
            "instrument_id": 2**32 - 1,
            "flags": [],
            "reserved": 0,
            "features": 10.0,
        }

    def test_a_request_without_a_deadline(self, decoder: Any) -> None:
        frame = RequestOutbox(FEATURES).encode_single(np.zeros(FEATURES), 1, 2, 0, 3)
        assert decoder.decode(bytes(frame)).value["deadline_ns"] is None

    @pytest.mark.parametrize("status", Status)
    def test_response(self, decoder: Any, status: Status) -> None:
        inbox = RequestInbox(FEATURES, 1)
        frame = request_frame()
        inbox.writable()[: len(frame)] = frame
        inbox.arrived(len(frame))
        inbox.scan(111)
        outbox = ResponseOutbox(OUTPUTS, 1, model_generation=9)
        live = status is Status.OK
        sent = outbox.encode(
            inbox.row_words(0, 1),
            np.array([[0.25, 0.5, 0.75]], np.float32)[: int(live)],
            np.array([status], np.uint16),
            send_time_ns=222,
            infer_ns=333,
            batch_rows=44,
        )
        message = decoder.decode(bytes(sent))
        assert message.message_name == "SignalResponse"
        ran = status in (Status.OK, Status.MODEL_ERROR)
        first_output = message.value.pop("outputs")
        assert first_output == 0.25 if live else np.isnan(first_output)
        assert message.value == {
            "sequence": 2**64 - 1,
            "client_time_ns": 2**63,
            "receive_time_ns": 111,
            "send_time_ns": 222,
            "instrument_id": 2**32 - 1,
            "model_generation": 9,
            "infer_ns": 333 if ran else 0,
            "status": status.name,
            "batch_rows": 44 if ran else 0,
        }

    def test_what_it_encodes_we_read(self, decoder: Any) -> None:
        """The other way: a Heartbeat has neither arrays nor sets, which this version does not encode."""
        heartbeat = decoder.encode(decoder.messages[4], {"clock_ns": 5})
        assert heartbeat == Heartbeat(5).encode() == struct.pack("<HHHHQ", 8, 4, 91, 1, 5)
        assert Heartbeat.decode(heartbeat[8:]) == Heartbeat(5)
