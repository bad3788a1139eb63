"""The judge of OCSF events: the schema as it was published, one file a release, from PyPI.

`faults` checks an event as its class, with the profiles that it names: attributes that the class or
an object of it does not have, missing ones, types, enumerated values, ranges and patterns (JSON
Schema), and then what that cannot say: that a profile belongs to the class, and that a caption is
its number's. It gives every fault as one line; none is an empty list.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from jsonschema import Draft202012Validator
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from netns_runtime.ocsf import VERSION

VERSIONS: Final = (VERSION, "1.4.0", "1.5.0", "1.6.0", "1.7.0", "1.8.0")
"""What our events say they are, and every later release that the judge has."""
OTHER: Final = 99
"""Of any enumeration: the caption is the event's own."""


def faults(event: dict[str, Any], version: str = "") -> list[str]:
    """What is wrong with an event by that release, or by the one that it names."""
    release = version or str(event["metadata"]["version"])
    schema = _published(release)
    name = _name_of(release, event["class_uid"])
    profiles = tuple(event["metadata"].get("profiles", ()))
    found = [
        f"{'.'.join(map(str, error.absolute_path)) or name}: {error.message[:300]}"
        for error in _validator(release, name, profiles).iter_errors(event)
    ]
    known = schema["classes"][name]
    found += [
        f"{name} has no profile {profile}" for profile in set(profiles) - set(known["profiles"])
    ]
    expected = {
        "class_name": known["caption"],
        "category_name": known["category_name"],
        "type_uid": event["class_uid"] * 100 + event["activity_id"],
    }
    found += [f"{key} is not {value}" for key, value in expected.items() if event[key] != value]
    return [*found, *_miscaptioned(schema, known, event, name)]


@cache
def _published(release: str) -> dict[str, Any]:
    schema: dict[str, Any] = get_ocsf_schema(version=release)
    return schema


@cache
def _name_of(release: str, class_uid: int) -> str:
    return str(OcsfJsonSchemaEmbedded(_published(release)).lookup_class_name_from_uid(class_uid))


@cache
def _validator(release: str, name: str, profiles: tuple[str, ...]) -> Draft202012Validator:
    schema = OcsfJsonSchemaEmbedded(_published(release)).get_class_schema(name, list(profiles))
    return Draft202012Validator(schema)


def _miscaptioned(
    schema: dict[str, Any], known: dict[str, Any], said: dict[str, Any], path: str
) -> list[str]:
    """Numbers and their captions, in the class or object `known` and below."""
    found = []
    for key, value in said.items():
        attribute = known["attributes"].get(key, {})
        sibling, values = attribute.get("sibling"), attribute.get("enum", {})
        if sibling in said and str(value) in values and value != OTHER:
            caption = values[str(value)]["caption"]
            if said[sibling] != caption:
                found.append(f"{path}.{sibling} is {said[sibling]!r}, and {value} is {caption!r}")
        if "object_type" in attribute:
            inner = schema["objects"][attribute["object_type"]]
            for entry in value if isinstance(value, list) else [value]:
                if isinstance(entry, dict):
                    found += _miscaptioned(schema, inner, entry, f"{path}.{key}")
    return found
