"""pip, npm and apt: the hosts of the user's own configuration, read-only, and nothing else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from netns_runtime import presets
from netns_runtime.errors import UsageError
from netns_runtime.policy import load_policy
from netns_runtime.presets.account import Account
from netns_runtime.presets.apt import line_urls, stanza_urls
from netns_runtime.presets.origin import parse_origin

if TYPE_CHECKING:
    from pathlib import Path


class Quiet(Account):
    """An account whose tools say what `answers` holds, by the tool's name."""

    answers: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed

    def ask(self, *words: str, **_environment: str) -> str | None:
        return self.answers.get(words[0])


def account(home: Path, answers: dict[str, str] | None = None, **environment: str) -> Account:
    found = Quiet(os.getuid(), os.getgid(), (), str(home), environment, str(home / "root"))
    type(found).answers = answers or {}
    return found


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def endpoints(name: str, whose: Account) -> list[tuple[str, int]]:
    policy = load_policy(presets.text_of(name, whose).encode(), f"preset {name}")
    found = [endpoint for rule in policy.rules for endpoint in rule.endpoints]
    for endpoint in found:
        assert endpoint.inspection is not None
        assert endpoint.inspection.protocol == "rest"
        assert endpoint.inspection.access == "read-only"
    return [(endpoint.host, (endpoint.ports or ())[0]) for endpoint in found]


def test_pip_reads_its_files_and_variables(tmp_path: Path) -> None:
    write(
        tmp_path / "root/etc/pip.conf",
        "[global]\nindex-url = https://u:p@old.test/simple\nextra_index_url =\n"
        "    https://extra.test:8443/s\n    http://plain.test/s\n",
    )
    write(tmp_path / ".config/pip/pip.conf", "[global]\nindex-url = https://new.test/simple\n")
    whose = account(tmp_path, PIP_FIND_LINKS="https://links.test/x /local/dir")
    assert endpoints("pip", whose) == [
        *(("new.test", 443), ("extra.test", 8443), ("plain.test", 80), ("links.test", 443))
    ]


def test_a_variable_of_pip_stands_over_its_files(tmp_path: Path) -> None:
    write(tmp_path / ".pip/pip.conf", "[install]\nindex-url = https://file.test/simple\n")
    whose = account(tmp_path, PIP_INDEX_URL="https://variable.test/simple")
    assert endpoints("pip", whose) == [("variable.test", 443)]


def test_pip_is_asked_for_its_own_where_nothing_is_configured(tmp_path: Path) -> None:
    said = {"python3": "https://index.test/simple https://files.test\n"}
    assert endpoints("pip", account(tmp_path, said)) == [("index.test", 443), ("files.test", 443)]
    whose = account(tmp_path, said, PIP_INDEX_URL="https://index.test/simple")
    assert endpoints("pip", whose) == [("index.test", 443), ("files.test", 443)]
    whose = account(tmp_path, said, PIP_INDEX_URL="https://mirror.test/simple")
    assert endpoints("pip", whose) == [("mirror.test", 443)]


def test_npm_reads_registry_and_scopes(tmp_path: Path) -> None:
    write(
        tmp_path / "root/etc/npmrc", "registry = https://old.test/\n@a:registry=https://a.test/\n"
    )
    write(
        tmp_path / ".npmrc",
        '; registry=https://no.test\nregistry="https://${HOST}/npm/"\n'
        "//new.test/:_authToken=sesame\n@b:registry=http://b.test:4873\n",
    )
    whose = account(tmp_path, HOST="new.test")
    assert endpoints("npm", whose) == [("new.test", 443), ("a.test", 443), ("b.test", 4873)]
    assert "sesame" not in presets.text_of("npm", whose)


def test_a_variable_of_npm_stands_over_its_files(tmp_path: Path) -> None:
    write(tmp_path / ".npmrc", "registry=https://file.test\n")
    whose = account(tmp_path, NPM_CONFIG_REGISTRY="https://variable.test")
    assert endpoints("npm", whose) == [("variable.test", 443)]
    other = write(tmp_path / "other", "registry=https://other.test\n")
    assert endpoints("npm", account(tmp_path, npm_config_userconfig=str(other))) == [
        ("other.test", 443)
    ]


def test_npm_is_asked_for_its_own_where_nothing_is_configured(tmp_path: Path) -> None:
    assert endpoints("npm", account(tmp_path, {"npm": "https://default.test/\n"})) == [
        ("default.test", 443)
    ]


def test_apt_reads_both_forms(tmp_path: Path) -> None:
    base = tmp_path / "root/etc/apt"
    write(
        base / "sources.list", "deb http://one.test/debian stable main\n# deb http://no.test x y\n"
    )
    write(base / "sources.list.d/b.list", "deb [arch=amd64 signed-by=/x] https://b.test/ ./\n")
    write(
        base / "sources.list.d/c.sources",
        "Types: deb\nURIs: https://c.test:8443/debian\n  mirror+file:/etc/apt/mirrors.list\n"
        "Suites: stable\n\nEnabled: no\nTypes: deb\nURIs: http://off.test\n",
    )
    write(base / "sources.list.d/d.bak", "deb http://no.test x y\n")
    write(base / "mirrors.list", "# mirrors\nhttp://m.test/debian\tpriority:1\n")
    assert endpoints("apt", account(tmp_path)) == [
        *(("one.test", 80), ("b.test", 443), ("c.test", 8443), ("m.test", 80))
    ]


@pytest.mark.parametrize("name", ["pip", "npm", "apt"])
def test_where_nothing_is_configured_or_said_it_is_one_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"--preset {name}: ") as caught:
        presets.text_of(name, account(tmp_path))
    assert "\n" not in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize("path", [".npmrc", ".config/pip/pip.conf"])
def test_a_configuration_that_is_no_file_stops_nobody(path: str, tmp_path: Path) -> None:
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / path)
    name = "npm" if path == ".npmrc" else "pip"
    with pytest.raises(UsageError):
        presets.text_of(name, account(tmp_path))


def test_a_hostile_configuration_cannot_write_policy(tmp_path: Path) -> None:
    evil = 'https://x.test"}\\n - {host: "evil.test/'
    write(tmp_path / ".npmrc", f"registry={evil}\n@s:registry=https://ok.test\n")
    assert endpoints("npm", account(tmp_path)) == [("ok.test", 443)]


@pytest.mark.parametrize(
    ("name", "variable", "value", "said"),
    [
        ("pip", "PIP_INDEX_URL", "not a url", "PIP_INDEX_URL is 'not a url', which is no http"),
        ("npm", "npm_config_registry", "junk", "npm_config_registry is 'junk', which is no http"),
        ("npm", "npm_config_registry", "ftp://u:pw@h/", "npm_config_registry is '...@h/'"),
    ],
)
def test_a_setting_that_is_no_url_is_named_with_its_value(
    tmp_path: Path, name: str, variable: str, value: str, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        presets.text_of(name, account(tmp_path, None, **{variable: value}))
    assert str(caught.value).startswith(f"--preset {name}: ")
    assert said in str(caught.value)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "file:///srv/x",
        "cdrom:[Debian]/",
        "/srv/x",
        "https://",
        "https://a b/",
        "http://h:99999/",
        "",
    ],
)
def test_what_no_proxy_carries_is_no_origin(url: str) -> None:
    assert parse_origin(url, "x") is None


def test_a_comment_ends_a_line_and_a_stanza_goes_on_over_lines() -> None:
    assert list(
        line_urls("deb-src http://a.test/ x # deb http://b.test/ y\ndebx http://c.test/ z")
    ) == ["http://a.test/"]
    text = "Types: deb\n#URIs: http://no.test\nURIs:\n http://a.test\n http://b.test\n"
    assert list(stanza_urls(text)) == ["http://a.test", "http://b.test"]


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user's rights")
def test_a_file_is_read_with_the_user_s_rights(tmp_path: Path) -> None:
    secret = write(tmp_path / "secret", "registry=https://root.test\n")
    secret.chmod(0o600)
    tmp_path.chmod(0o755)
    link = tmp_path / ".npmrc"
    link.symlink_to(secret)
    nobody: Any = Account(65534, 65534, (65534,), str(tmp_path), {})
    assert nobody.read(str(link)) is None
    assert (os.geteuid(), os.getegid()) == (0, 0)
    assert Account(0, 0, (0,), str(tmp_path), {}).read(str(link)) is not None
