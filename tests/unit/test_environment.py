"""What CMD finds in its environment."""

from __future__ import annotations

import pwd
import urllib.request

import pytest

from netns_runtime.environment import (
    EXTRA_VARIABLES,
    NO_PROXY,
    PROXY_URL,
    PROXY_VARIABLES,
    TRUST_VARIABLES,
    Trusted,
    environment_of,
)

BOB = pwd.struct_passwd(("bob", "x", 1000, 1000, "", "/home/bob", "/bin/zsh"))
SUDO = {
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "MAIL": "/var/mail/root",
    "SUDO_USER": "bob",
    "SUDO_UID": "1000",
    "SUDO_GID": "1000",
    "SUDO_COMMAND": "/usr/bin/netns-run",
    "PATH": "/usr/bin:/bin",
    "TERM": "xterm",
}


@pytest.mark.parametrize(
    "name",
    [
        *("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"),
        *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "GRPC_PROXY"),
        *("npm_config_proxy", "npm_config_https_proxy", "YARN_HTTP_PROXY", "YARN_HTTPS_PROXY"),
    ],
)
def test_names_the_proxy_in_every_spelling(name: str) -> None:
    assert environment_of({})[name] == PROXY_URL == "http://10.200.0.1:3128"


def test_switches_on_the_clients_that_wait_to_be_asked() -> None:
    result = environment_of({})
    assert result["NODE_USE_ENV_PROXY"] == "1"
    assert result["ELECTRON_GET_USE_PROXY"] == "1"


@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_loopback_is_not_proxied(name: str) -> None:
    entries = environment_of({})[name].split(",")
    assert {"localhost", "127.0.0.1", "::1"} <= set(entries)


def test_no_proxy_has_nothing_that_ends_an_httpx_client() -> None:
    assert "[" not in NO_PROXY
    assert "/" not in NO_PROXY


def test_python_reads_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment_of({}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("REQUEST_METHOD", raising=False)
    assert urllib.request.getproxies_environment()["https"] == PROXY_URL
    assert urllib.request.proxy_bypass("localhost")
    assert not urllib.request.proxy_bypass("api.test")


def test_java_gets_options_behind_those_it_had() -> None:
    assert environment_of({"JAVA_TOOL_OPTIONS": "-Xmx1g"})["JAVA_TOOL_OPTIONS"].split() == [
        "-Xmx1g",
        "-Dhttp.proxyHost=10.200.0.1",
        "-Dhttp.proxyPort=3128",
        "-Dhttps.proxyHost=10.200.0.1",
        "-Dhttps.proxyPort=3128",
    ]


@pytest.mark.parametrize(
    "name", ["http_proxy", "Https_Proxy", "NO_PROXY", "ftp_proxy", "SOCKS_PROXY", "wss_proxy"]
)
def test_replaces_a_proxy_of_the_callers_own(name: str) -> None:
    result = environment_of({name: "http://corporate.test:8080"})
    assert "http://corporate.test:8080" not in result.values()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SSH_AUTH_SOCK", "/tmp/ssh-x/agent.1"),
        ("SSH_AGENT_PID", "12"),
        ("DBUS_SESSION_BUS_ADDRESS", "unix:path=/run/user/1000/bus"),
        ("DBUS_STARTER_BUS_TYPE", "session"),
        ("XDG_RUNTIME_DIR", "/run/user/1000"),
        ("WAYLAND_DISPLAY", "wayland-0"),
        ("GPG_AGENT_INFO", "/tmp/gpg:1:1"),
        ("DOCKER_HOST", "unix:///var/run/docker.sock"),
        ("BUILDKIT_HOST", "unix:///run/buildkit/buildkitd.sock"),
        ("ANY_TOOLS_SOCKET", "unix:/run/x"),
        ("TMUX", "/tmp/tmux-1000/default,1,0"),
        ("NOTIFY_SOCKET", "@/org/x"),
        ("LISTEN_FDS", "1"),
        ("LISTEN_PID", "1"),
        ("PULSE_SERVER", "unix:/run/user/1000/pulse/native"),
        ("SYSTEMD_EXEC_PID", "1"),
        ("INVOCATION_ID", "0f"),
        ("JOURNAL_STREAM", "8:1"),
        ("DISPLAY", ":0"),
        ("DISPLAY", "unix:0"),
        ("XAUTHORITY", "/run/user/1000/gdm/Xauthority"),
        ("SUDO_USER", "bob"),
        ("SUDO_COMMAND", "/usr/bin/netns-run"),
    ],
)
def test_drops_what_points_to_the_host(name: str, value: str) -> None:
    assert name not in environment_of({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PATH", "/usr/bin"),
        ("TERM", "xterm"),
        ("LANG", "C.UTF-8"),
        ("KUBECONFIG", "/home/bob/.kube/config"),
        ("DOCKER_HOST", "tcp://docker.test:2376"),
        ("DISPLAY", "x11.test:10.0"),
        ("GOPROXY", "https://goproxy.test"),
        ("MY_APP_PROXY", "yes"),
        ("HOME", "/home/bob"),
        ("LISTENER", "x"),
        ("", "odd"),
        ("BASH_FUNC_f%%", "() { :; }"),
    ],
)
def test_keeps_everything_else(name: str, value: str) -> None:
    assert environment_of({name: value})[name] == value


def test_keeps_a_pointer_to_a_socket_that_is_let_in() -> None:
    base = {
        "SSH_AUTH_SOCK": "/tmp/agent",
        "DOCKER_HOST": "unix:///var/run/docker.sock",
        "DBUS_SESSION_BUS_ADDRESS": "unix:path=/run/bus,guid=1",
        "NOTIFY_SOCKET": "/run/notify",
    }
    exposed = ("/tmp/agent", "/var/run/docker.sock", "/run/bus")
    result = environment_of(base, exposed=exposed)
    assert [name for name in base if name in result] == list(base)[:3]


def test_sudo_is_undone() -> None:
    result = environment_of(SUDO, user=BOB, sudo=True)
    assert {name: result[name] for name in ("HOME", "USER", "LOGNAME", "SHELL", "MAIL")} == {
        "HOME": "/home/bob",
        "USER": "bob",
        "LOGNAME": "bob",
        "SHELL": "/bin/zsh",
        "MAIL": "/var/mail/bob",
    }
    assert not [name for name in result if name.startswith("SUDO_")]
    assert result["PATH"] == SUDO["PATH"]


def test_root_without_sudo_keeps_a_home_of_its_own_choice() -> None:
    root = pwd.struct_passwd(("root", "x", 0, 0, "", "/root", "/bin/bash"))
    base = {"HOME": "/srv/build", "USER": "root"}
    assert environment_of(base, user=root)["HOME"] == "/srv/build"


def test_another_user_gets_a_home_of_its_own_without_sudo() -> None:
    assert environment_of({"HOME": "/root", "USER": "root"}, user=BOB)["HOME"] == "/home/bob"


def test_no_mail_is_invented() -> None:
    assert "MAIL" not in environment_of({}, user=BOB, sudo=True)


def test_a_uid_without_a_name_keeps_nothing_of_roots() -> None:
    result = environment_of(SUDO, user=None, sudo=True)
    assert result["HOME"] == "/"
    assert not {"USER", "LOGNAME", "MAIL", "SHELL"} & result.keys()


def test_a_bundle_is_named_to_every_client() -> None:
    trusted = Trusted("/run/all.pem", "/run/ours.pem", "/run/java.jks")
    base = {"SSL_CERT_FILE": "/corporate.pem", "JAVA_TOOL_OPTIONS": "-Xmx1g"}
    result = environment_of(base, trusted=trusted)
    assert {result[name] for name in TRUST_VARIABLES} == {"/run/all.pem"}
    assert {result[name] for name in EXTRA_VARIABLES} == {"/run/ours.pem"}
    assert {"SSL_CERT_FILE", "npm_config_cafile", "REQUESTS_CA_BUNDLE"} <= set(TRUST_VARIABLES)
    assert "NODE_EXTRA_CA_CERTS" in EXTRA_VARIABLES
    java = result["JAVA_TOOL_OPTIONS"].split()
    assert java[0] == "-Xmx1g"
    assert java[-2:] == [
        "-Djavax.net.ssl.trustStore=/run/java.jks",
        "-Djavax.net.ssl.trustStoreType=JKS",
    ]


def test_a_variable_that_replaces_the_roots_of_its_program_names_all_of_them() -> None:
    assert not set(TRUST_VARIABLES) & set(EXTRA_VARIABLES)


def test_without_a_bundle_trust_is_the_callers() -> None:
    result = environment_of({"SSL_CERT_FILE": "/corporate.pem"})
    assert result["SSL_CERT_FILE"] == "/corporate.pem"
    assert "NODE_EXTRA_CA_CERTS" not in result


def test_the_callers_mapping_is_left_alone() -> None:
    base = {"http_proxy": "x", "SUDO_USER": "bob"}
    environment_of(base)
    assert base == {"http_proxy": "x", "SUDO_USER": "bob"}


def test_doing_it_twice_changes_only_javas_options() -> None:
    once = environment_of({"PATH": "/bin"})
    twice = environment_of(once)
    assert {name for name in twice if twice[name] != once.get(name)} <= {"JAVA_TOOL_OPTIONS"}
    assert PROXY_VARIABLES.items() <= twice.items()
