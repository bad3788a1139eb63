"""CMD's environment: placeholders where values were."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from netns_runtime.environment import with_secrets
from netns_runtime.secret import Binding, Secret, Slot, placeholder_of

if TYPE_CHECKING:
    from netns_runtime.secret import Expose

SLOTS = (Slot("header", "authorization"),)


def secret(name: str, value: str, expose: Expose = "placeholder") -> Secret:
    return Secret(Binding(name, ("api.test",), SLOTS, expose), value)


def test_the_variable_of_a_secret_holds_the_placeholder() -> None:
    found = with_secrets({"TOKEN": "open-sesame", "LANG": "C"}, [secret("TOKEN", "open-sesame")])
    assert found == {"TOKEN": "openshell:resolve:env:TOKEN", "LANG": "C"}


def test_a_secret_from_a_file_gets_a_variable_of_its_name() -> None:
    assert with_secrets({}, [secret("TOKEN", "open-sesame")])["TOKEN"] == placeholder_of("TOKEN")


def test_every_copy_of_a_value_is_replaced() -> None:
    value = "pa/ss:word@1"
    found = with_secrets(
        {"COPY": value, "URL": f"https://u:{quote(value, safe='')}@h/", "AUTH": f"Bearer {value}!"},
        [secret("TOKEN", value)],
    )
    assert found["COPY"] == placeholder_of("TOKEN")
    assert found["URL"] == f"https://u:{quote(placeholder_of('TOKEN'), safe='')}@h/"
    assert found["AUTH"] == f"Bearer {placeholder_of('TOKEN')}!"


def test_the_longer_of_two_values_is_replaced_whole() -> None:
    found = with_secrets(
        {"X": "abcdef-long"}, [secret("SHORT", "abcdef"), secret("LONG", "abcdef-long")]
    )
    assert found["X"] == placeholder_of("LONG")


def test_no_value_is_looked_for_inside_a_placeholder() -> None:
    found = with_secrets({"X": "first-value"}, [secret("A", "first-value"), secret("B", "resolve")])
    assert found["X"] == placeholder_of("A")


def test_a_short_value_leaves_other_variables_whole() -> None:
    found = with_secrets({"HOME": "/root", "PIN": "root"}, [secret("PIN", "root")])
    assert found == {"HOME": "/root", "PIN": placeholder_of("PIN")}


def test_the_variable_that_a_value_was_read_from_holds_the_placeholder_at_any_length() -> None:
    given = {"PIN": "12", "LEVEL": "123"}
    found = with_secrets(given, [secret("TOKEN", "12")], variables={"TOKEN": "PIN"})
    held = placeholder_of("TOKEN")
    assert found == {"PIN": held, "LEVEL": "123", "TOKEN": held}


def test_a_source_that_the_sandbox_replaced_stays_replaced() -> None:
    found = with_secrets({"HOME": "/"}, [secret("TOKEN", "12")], variables={"TOKEN": "HOME"})
    assert found["HOME"] == "/"


def test_a_copy_in_lower_case_percent_encoding_is_replaced() -> None:
    value = "pa/ss:word@1"
    found = with_secrets({"URL": "https://u:pa%2fss%3aword%401@h/"}, [secret("TOKEN", value)])
    assert found["URL"] == f"https://u:{quote(placeholder_of('TOKEN'), safe='')}@h/"


def test_expose_env_gives_the_value_and_leaves_copies() -> None:
    found = with_secrets({"COPY": "open-sesame"}, [secret("TOKEN", "open-sesame", "env")])
    assert found == {"COPY": "open-sesame", "TOKEN": "open-sesame"}


def test_expose_endpoint_gives_the_placeholder_and_the_way_to_the_value() -> None:
    found = with_secrets({}, [secret("TOKEN", "open-sesame", "endpoint")], "t0ken")
    assert found == {
        "TOKEN": placeholder_of("TOKEN"),
        "NETNS_SECRETS_URL": "http://10.200.0.1:3128/secrets/v1",
        "NETNS_SECRETS_TOKEN": "t0ken",
    }
