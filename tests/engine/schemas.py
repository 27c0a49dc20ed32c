"""JSON Schemas that are kept to, as programs write them; and those that can't be, with reasons."""

from __future__ import annotations

from typing import Any, Final

PERSON: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b\\c", 'q"', "\t", "é"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
TREE: Final[dict[str, Any]] = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "integer", "exclusiveMinimum": -3, "maximum": 14.5},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["value", "next"],
        }
    },
}

KEPT: Final[dict[str, Any]] = {
    "anything": {},
    "true": True,
    "string": {"type": "string"},
    "length": {"type": "string", "minLength": 2, "maxLength": 5},
    "integer": {"type": "integer"},
    "range": {"type": "integer", "minimum": -120, "maximum": 1305},
    "far range": {"minimum": 998, "exclusiveMaximum": 123457, "type": "integer"},
    "negative": {"type": "integer", "maximum": -17},
    "one": {"type": "integer", "minimum": 5, "maximum": 5},
    "number": {"type": "number"},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "types": {"type": ["integer", "null", "string"]},
    "const": {"const": {"a": [1, 2.5, None, "x\\y\n"], "é": True}},
    "enum": {"enum": ["red", 3, None, "\u2028", "\\", '"'], "type": ["string", "integer"]},
    "person": PERSON,
    "tree": TREE,
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}},
    },
    "middle": {
        "type": "object",
        "properties": {"a": {"type": "null"}, "b": {"type": "null"}, "c": {"type": "null"}},
        "required": ["b"],
    },
    "undeclared": {"required": ["x"], "additionalProperties": {"type": "boolean"}},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}},
    "empty": {"type": "object", "additionalProperties": False},
    "array": {"type": "array", "items": {"type": "boolean"}},
    "bounded": {"type": "array", "items": {"type": "null"}, "minItems": 2, "maxItems": 4},
    "none": {"type": "array", "maxItems": 0},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "null"}]},
    "closed tuple": {"prefixItems": [{"type": "integer"}], "items": False, "minItems": 1},
    "tuple and more": {
        "prefixItems": [{"type": "null"}],
        "items": {"type": "boolean"},
        "minItems": 3,
        "maxItems": 5,
    },
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time"},
    "date-time": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "email": {"type": "string", "format": "email"},
    "pattern": {"type": "string", "pattern": r"^[A-Z]{2}-\d{1,3}(a|b)?$"},
    "loose pattern": {"type": "string", "pattern": r"x\w[^a\d]"},
    "hard pattern": {"type": "string", "pattern": '^"\\\\\\s[^x]\\D.$'},
    "one of types": {"oneOf": [{"type": "string"}, {"type": "integer"}, {"const": None}][:2]},
    "one of kinds": {
        "oneOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, kind: {"type": "null"}},
                "required": ["kind"],
            }
            for kind in ("cat", "dog")
        ],
        "discriminator": {"propertyName": "kind"},
    },
    "all of one": {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "null"}}},
    "notes": {"type": "null", "title": "t", "description": "d", "default": 1, "examples": [1]},
    "odd names": {
        "type": "object",
        "properties": {'a"b\\c\n': {"type": "null"}, "é 世": {"type": "null"}},
        "required": ['a"b\\c\n', "é 世"],
    },
}

REFUSED: Final[list[tuple[Any, list[str]]]] = [
    ({"type": "array", "uniqueItems": True}, ["uniqueItems at #"]),
    (
        {"properties": {"n": {"type": "integer", "multipleOf": 3}}, "minProperties": 1},
        ["multipleOf at #/properties/n", "minProperties at #"],
    ),
    ({"type": "number", "minimum": 1}, ["minimum of a number at #"]),
    ({"type": "string", "format": "uri"}, ["format 'uri' at #"]),
    ({"not": {"type": "null"}}, ["not at #"]),
    ({"type": "array", "contains": {}}, ["contains at #"]),
    ({"if": {}, "then": {}, "else": {}}, ["else at #", "if at #", "then at #"]),
    ({"patternProperties": {"a": {}}}, ["patternProperties"]),
    ({"propertyNames": {}}, ["propertyNames"]),
    ({"allOf": [{}, {}]}, ["allOf of more than one"]),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, ["oneOf", "use anyOf"]),
    ({"oneOf": [{}, {}]}, ["oneOf"]),
    ({"anyOf": [{}], "minLength": 3}, ["minLength beside anyOf"]),
    ({"$ref": "#/$defs/a", "type": "null", "$defs": {"a": {}}}, ["type beside $ref"]),
    ({"$ref": "https://example.org/s"}, ["$ref 'https://example.org/s'"]),
    ({"$ref": "#/nowhere"}, ["$ref '#/nowhere'"]),
    ({"enum": [1], "type": "string"}, ["a choice without any value"]),
    ({"type": "string", "pattern": "(?=a)b"}, ["pattern"]),
    ({"type": "string", "pattern": "a("}, ["pattern (no regular expression"]),
    ({"type": "string", "pattern": "^a$", "minLength": 2}, ["pattern beside minLength"]),
    ({"type": "array", "minItems": 3, "maxItems": 2}, ["minItems 3"]),
    ({"type": "integer", "minimum": 3, "maximum": 2}, ["from 3 to 2"]),
    ({"type": "wood"}, ["type 'wood'"]),
    ({"items": [{}]}, ["use prefixItems"]),
    ({"nonsense": 1}, ["nonsense at #"]),
    (False, ["nothing satisfies"]),
    ([], ["nothing satisfies"]),
]
