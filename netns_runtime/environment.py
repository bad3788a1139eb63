"""CMD's environment: the caller's, without pointers to the host's sockets, with the proxy in every
spelling that some client reads.

Pure: a mapping in, a dict out. A caller's own proxy and, where there is a bundle, trust variables
are replaced, because they name what the sandbox cannot reach. A pointer to a socket stays only if
`--expose-socket` lets that very path in.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from netns_runtime import layout

if TYPE_CHECKING:
    import pwd
    from collections.abc import Collection, Iterable, Mapping

    from netns_runtime.secret import Secret

PROXY_AUTHORITY: Final = f"{layout.GATEWAY_IPV4}:{layout.PROXY_PORT}"
PROXY_URL: Final = f"http://{PROXY_AUTHORITY}"
# The bare ::1: a bracketed entry, or an IPv6 range, makes every httpx client of Python, and so the
# OpenAI and Anthropic SDKs, fail at start (encode/httpx #3221, #3574).
NO_PROXY: Final = "localhost,127.0.0.1,::1"

_JAVA_OPTIONS: Final = " ".join(
    f"-D{scheme}.proxyHost={layout.GATEWAY_IPV4} -D{scheme}.proxyPort={layout.PROXY_PORT}"
    for scheme in ("http", "https")
)

# Who reads what. curl reads http_proxy in lower case only; Go, Python, Ruby, wget, git, cargo, pip,
# Deno and Bun read one of the first four; requests is content with ALL_PROXY; gRPC has its own.
PROXY_VARIABLES: Final[dict[str, str]] = {
    "http_proxy": PROXY_URL,
    "https_proxy": PROXY_URL,
    "all_proxy": PROXY_URL,
    "grpc_proxy": PROXY_URL,
    "HTTP_PROXY": PROXY_URL,
    "HTTPS_PROXY": PROXY_URL,
    "ALL_PROXY": PROXY_URL,
    "GRPC_PROXY": PROXY_URL,
    "no_proxy": NO_PROXY,
    "NO_PROXY": NO_PROXY,
    # Node 22.21 and 24: fetch, http, https and the built-in WebSocket.
    "NODE_USE_ENV_PROXY": "1",
    # These two outrank a .npmrc, which may name another proxy.
    "npm_config_proxy": PROXY_URL,
    "npm_config_https_proxy": PROXY_URL,
    "npm_config_noproxy": NO_PROXY,
    # Yarn 2 and later read no other proxy variable.
    "YARN_HTTP_PROXY": PROXY_URL,
    "YARN_HTTPS_PROXY": PROXY_URL,
    # @electron/get, which installs Electron itself, and global-agent, which it brings.
    "ELECTRON_GET_USE_PROXY": "1",
    "GLOBAL_AGENT_HTTP_PROXY": PROXY_URL,
    "GLOBAL_AGENT_HTTPS_PROXY": PROXY_URL,
    "GLOBAL_AGENT_NO_PROXY": NO_PROXY,
    # rsync:// by CONNECT; rsync wants no scheme.
    "RSYNC_PROXY": PROXY_AUTHORITY,
}

# Proxies we are not, so a caller's value can only mislead.
_FOREIGN_PROXIES: Final = frozenset(
    f"{scheme}_proxy" for scheme in ("ftp", "gopher", "socks", "socks4", "socks5", "ws", "wss")
)
_REPLACED: Final = _FOREIGN_PROXIES | {name.lower() for name in PROXY_VARIABLES}

# A JVM reads nothing but its options. This one reaches every JVM of every version; the line
# `Picked up JAVA_TOOL_OPTIONS` on its stderr is the price (JDK_JAVA_OPTIONS prints one as well and
# reaches only the `java` launcher of 9 and later). Java leaves loopback unproxied by itself.
_JAVA_VARIABLE: Final = "JAVA_TOOL_OPTIONS"

# What names a bundle that takes the place of the program's own roots: all of the system's and ours.
TRUST_VARIABLES: Final = (
    "SSL_CERT_FILE",  # OpenSSL, Go, Ruby, Perl, PHP, .NET, R, rustls-native-certs, uv, httpx
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "npm_config_cafile",
    "YARN_HTTPS_CA_FILE_PATH",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "BUNDLE_SSL_CA_CERT",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "PERL_LWP_SSL_CA_FILE",
    "NIX_SSL_CERT_FILE",
    "HEX_CACERTS_PATH",  # Elixir's and Erlang's package manager
    "HTTPLIB2_CA_CERTS",
    "WEBSOCKET_CLIENT_CA_BUNDLE",
)
# What names certificates beside the program's own roots. A short file: Node reads it at its first
# TLS connection, and a whole bundle costs it 10 ms there.
EXTRA_VARIABLES: Final = ("NODE_EXTRA_CA_CERTS", "DENO_CERT")


@dataclass(frozen=True, slots=True)
class Trusted:
    """Files as seen inside: `bundle` with every root, `extra` with those of this sandbox alone,
    both PEM, and `java`, a key store (JKS) with every root."""

    bundle: str
    extra: str
    java: str

    @property
    def java_options(self) -> str:
        """A JVM's own cacerts is not every JVM's. The type is named for those with another
        default; no password is needed to read a JKS store."""
        option = "-Djavax.net.ssl.trustStore"
        return f"{option}={self.java} {option}Type=JKS"


# Names whose value is, or leads to, a socket or another object of the host.
_POINTERS: Final = frozenset(
    {
        "AT_SPI_BUS_ADDRESS",
        "EMACS_SOCKET_NAME",
        "GNOME_KEYRING_CONTROL",
        "GPG_AGENT_INFO",
        "HYPRLAND_INSTANCE_SIGNATURE",
        "I3SOCK",
        "INVOCATION_ID",
        "JOURNAL_STREAM",
        "KITTY_LISTEN_ON",
        "MAINPID",
        "MANAGERPID",
        "NOTIFY_SOCKET",
        "NVIM",
        "NVIM_LISTEN_ADDRESS",
        "PIPEWIRE_REMOTE",
        "PIPEWIRE_RUNTIME_DIR",
        "PULSE_RUNTIME_PATH",
        "PULSE_SERVER",
        "SESSION_MANAGER",
        "SSH_AGENT_PID",
        "SSH_AUTH_SOCK",
        "STY",
        "SWAYSOCK",
        "TMUX",
        "TMUX_PANE",
        "VSCODE_GIT_IPC_HANDLE",
        "VSCODE_IPC_HOOK",
        "VSCODE_IPC_HOOK_CLI",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
        "WAYLAND_DISPLAY",
        "WAYLAND_SOCKET",
        "XDG_RUNTIME_DIR",
    }
)
_POINTER_PREFIXES: Final = ("DBUS_", "LISTEN_", "SYSTEMD_", "ZELLIJ")
# Variables of sudo itself: whose call this was is not CMD's business, and tools act on SUDO_UID.
_SUDO_PREFIX: Final = "SUDO_"
_NAMES: Final = ("USER", "LOGNAME", "SHELL", "MAIL")


def environment_of(
    base: Mapping[str, str],
    *,
    user: pwd.struct_passwd | None = None,
    sudo: bool = False,
    trusted: Trusted | None = None,
    exposed: Collection[str] = (),
) -> dict[str, str]:
    """The environment CMD starts with.

    `user` is the target user's entry, None for a uid without one; `sudo` says that the caller came
    through sudo, which put root's HOME and names into `base`. `trusted` is None where CMD trusts
    what the host does; `exposed` are the paths of `--expose-socket`.
    """
    result = {
        name: value
        for name, value in base.items()
        if name.lower() not in _REPLACED
        and not name.startswith(_SUDO_PREFIX)
        and (not points_to_host(name, value) or _is_exposed(value, exposed))
    }
    if "DISPLAY" not in result:
        result.pop("XAUTHORITY", None)
    if user is None and sudo:
        # A uid that no entry names: nothing of root's home or names fits it.
        for name in _NAMES:
            result.pop(name, None)
        result["HOME"] = "/"
    elif user is not None:
        result.update(_identity_of(base, user, sudo))
    result.update(PROXY_VARIABLES)
    java = [base.get(_JAVA_VARIABLE, ""), _JAVA_OPTIONS]
    if trusted is not None:
        result.update(dict.fromkeys(TRUST_VARIABLES, trusted.bundle))
        result.update(dict.fromkeys(EXTRA_VARIABLES, trusted.extra))
        java.append(trusted.java_options)
    result[_JAVA_VARIABLE] = " ".join(java).strip()
    return result


SECRETS_URL: Final = f"{PROXY_URL}/secrets/v1"


def with_secrets(
    environment: Mapping[str, str],
    secrets: Iterable[Secret],
    token: str = "",
    variables: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """The environment with each secret's variable, and no copy of a value elsewhere.

    The variable holds the placeholder, or with `expose: env` the value; so does the one that the
    value was read from (`variables`, by secret), at any length. Any other copy, percent-encoded
    ones included, becomes the placeholder; values shorter than COPY_LENGTH are not looked for.
    `token` opens the endpoint, where there is one.
    """
    import re
    from urllib.parse import quote

    from netns_runtime.supplied import COPY_LENGTH, encoded

    own: dict[str, str] = {}
    sources: dict[str, str] = {}
    copies: dict[str, str] = {}
    for secret in secrets:
        own[secret.name] = secret.placeholder
        if secret.binding.expose == "env":
            own[secret.name] = secret.value
            continue
        source = variables.get(secret.name, "")
        if secret.value in environment.get(source, ""):
            sources[source] = secret.placeholder
        if len(secret.value) >= COPY_LENGTH:
            copies.setdefault(secret.value, secret.placeholder)
            for copy in encoded(secret.value):
                copies.setdefault(copy, quote(secret.placeholder, safe=""))
    result = dict(environment)
    if copies:
        # One pass, the longest first: no value is looked for inside a placeholder.
        pattern = re.compile("|".join(map(re.escape, sorted(copies, key=len, reverse=True))))
        for name, value in environment.items():
            result[name] = pattern.sub(lambda match: copies[match[0]], value)
    result.update(sources)
    result.update(own)
    if token:
        result["NETNS_SECRETS_URL"], result["NETNS_SECRETS_TOKEN"] = SECRETS_URL, token
    return result


def points_to_host(name: str, value: str) -> bool:
    """Whether the variable leads to a socket, display or descriptor of the host."""
    if name in _POINTERS or name.startswith(_POINTER_PREFIXES):
        return True
    if name == "DISPLAY":
        # `:0` and `unix:0` are sockets under /tmp/.X11-unix, abstract ones too.
        return value.startswith((":", "unix", "/"))
    return value.startswith(("unix:", "unix-abstract:"))


def _is_exposed(value: str, exposed: Collection[str]) -> bool:
    # DOCKER_HOST=unix:///run/x, DBUS_…=unix:path=/run/x,guid=…, TMUX=/tmp/x,12,0
    path = value.partition("://")[2] or value.partition("path=")[2] or value
    return path.split(",")[0] in exposed


def _identity_of(base: Mapping[str, str], user: pwd.struct_passwd, sudo: bool) -> dict[str, str]:
    """What names the user, where it is another one than `base` says."""
    names = {base.get("USER"), base.get("LOGNAME")} - {None}
    if not sudo and names <= {user.pw_name} and "HOME" in base:
        return {}
    identity = {
        "HOME": user.pw_dir,
        "USER": user.pw_name,
        "LOGNAME": user.pw_name,
        "SHELL": user.pw_shell or "/bin/sh",
    }
    if "MAIL" in base:
        identity["MAIL"] = f"/var/mail/{user.pw_name}"
    return identity
