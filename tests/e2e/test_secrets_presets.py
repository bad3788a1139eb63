"""Each shipped preset: its secret reaches the service where the service looks for it.

The command is what the service's own documentation tells people to type, the credential is the
placeholder in the variable, and the lab's service (`lab_apis`) takes the value only.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.lab import CHECKOUT
from tests.support.run import NETNS_RUN, netns_run
from tests.support.secret_run import plain_value_of, run_with_secrets, value_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

PRESETS: Final = CHECKOUT / "netns_runtime/presets"
# Theirs have tests of their own: test_secrets_slack and test_secrets_discord.
ELSEWHERE: Final = {"slack", "discord"}
# Hosts from the user's configuration, and no secret.
CONFIGURED: Final = {"pip", "npm", "apt"}


@dataclass(frozen=True)
class Use:
    """curl's words, the secret as `$NAME`; `place` is where the lab must find it."""

    preset: str
    secret: str
    words: str
    place: str
    slot: str

    def __str__(self) -> str:
        return f"{self.preset} {self.secret} {self.place}"


def bearer(preset: str, secret: str, url: str) -> Use:
    words = f'-H "Authorization: Bearer ${secret}" {url}'
    return Use(preset, secret, words, "authorization", "header authorization")


def basic(preset: str, secret: str, url: str) -> Use:
    return Use(preset, secret, f'-u "me@lab.test:${secret}" {url}', "password", "basic password")


def form(preset: str, secret: str, field: str, url: str) -> Use:
    words = f'-d grant_type=some --data-urlencode "{field}=${secret}" {url}'
    return Use(preset, secret, words, f"form {field}", f"form {field}")


TEAMS: Final = "https://login.microsoftonline.com/lab/oauth2/v2.0/token"
GOOGLE: Final = "https://oauth2.googleapis.com/token"
USES: Final = (
    Use(
        *("telegram", "TELEGRAM_BOT_TOKEN"),
        words='"https://api.telegram.org/bot$TELEGRAM_BOT_TOKEN/getMe"',
        place="path",
        slot="path 0",
    ),
    Use(
        *("telegram", "TELEGRAM_BOT_TOKEN"),
        words='"https://api.telegram.org/file/bot$TELEGRAM_BOT_TOKEN/photos/1.jpg"',
        place="path",
        slot="path 1",
    ),
    bearer("github", "GITHUB_TOKEN", "https://api.github.com/user"),
    bearer("github", "GH_TOKEN", "https://api.github.com/user"),
    bearer("github", "GH_TOKEN", "https://uploads.github.com/repos"),
    basic("github", "GH_TOKEN", "https://github.com/lab/lab.git/info/refs?service=git-upload-pack"),
    Use(
        *("github", "GITHUB_TOKEN"),
        words='-H "Authorization: token $GITHUB_TOKEN" https://api.github.com/user',
        place="authorization",
        slot="header authorization",
    ),
    Use(
        *("anthropic", "ANTHROPIC_API_KEY"),
        words='-H "x-api-key: $ANTHROPIC_API_KEY" -d "{}" https://api.anthropic.com/v1/messages',
        place="x-api-key",
        slot="header x-api-key",
    ),
    bearer("anthropic", "ANTHROPIC_AUTH_TOKEN", "https://api.anthropic.com/v1/messages"),
    bearer("openai", "OPENAI_API_KEY", "https://api.openai.com/v1/models"),
    bearer("nvidia", "NVIDIA_API_KEY", "https://integrate.api.nvidia.com/v1/models"),
    bearer("huggingface", "HF_TOKEN", "https://huggingface.co/api/whoami-v2"),
    basic("huggingface", "HF_TOKEN", "https://huggingface.co/lab/lab/info/refs"),
    bearer("huggingface", "HF_TOKEN", "https://router.huggingface.co/v1/models"),
    form("microsoft-teams", "MSTEAMS_APP_PASSWORD", "client_secret", TEAMS),
    form("microsoft-teams", "MicrosoftAppPassword", "client_secret", TEAMS),
    bearer("gmail", "GMAIL_ACCESS_TOKEN", "https://gmail.googleapis.com/gmail/v1/users/me/profile"),
    form("gmail", "GMAIL_CLIENT_SECRET", "client_secret", GOOGLE),
    form("gmail", "GMAIL_REFRESH_TOKEN", "refresh_token", GOOGLE),
    Use(
        *("gmail", "GMAIL_CLIENT_SECRET"),
        words='-H "Content-Type: application/json" '
        f'-d "{{\\"client_secret\\": \\"$GMAIL_CLIENT_SECRET\\"}}" {GOOGLE}',
        place="json client_secret",
        slot="json /client_secret",
    ),
    basic("jira", "JIRA_API_TOKEN", "https://lab.atlassian.net/rest/api/3/myself"),
    bearer("jira", "ATLASSIAN_API_TOKEN", "https://api.atlassian.com/me"),
    bearer("whatsapp", "WHATSAPP_ACCESS_TOKEN", "https://graph.facebook.com/v21.0/1/messages"),
    Use(
        *("whatsapp", "WHATSAPP_TOKEN"),
        words='-G --data-urlencode "access_token=$WHATSAPP_TOKEN" https://graph.facebook.com/v21.0/1',
        place="query access_token",
        slot="query access_token",
    ),
)


def curl(use: Use, version: str) -> list[str]:
    return ["sh", "-c", f"exec curl -sS {version} --max-time 10 {use.words}"]


@pytest.mark.parametrize("use", USES, ids=str)
def test_a_presets_secret_arrives_where_the_service_looks(lab: Lab, use: Use) -> None:
    # Most tokens are plain; a password may be anything.
    make = value_of if use.slot.startswith(("form", "basic", "json", "query")) else plain_value_of
    values = {use.secret: make(use.secret)}
    lab.accept(use.secret, values[use.secret])
    for version in ("--http1.1", "--http2"):
        told = run_with_secrets(lab, values, "--preset", use.preset, cmd=curl(use, version))
        answer = json.loads(told.result.stdout or "{}")
        wanted = {"ok": True, "secret": use.secret, "place": use.place}
        assert answer == wanted, told.result.told()
        host = lab.requests_seen()[-1]["host"]
        assert told.substituted() == {(use.secret, use.slot, host)}, told.result.told()
        spoken = "2" if version == "--http2" else "1.1"
        assert lab.requests_seen()[-1]["version"] == spoken, told.result.told()
    assert lab.placeholders_seen() == []


def test_every_shipped_preset_has_a_test() -> None:
    shipped = {path.stem for path in PRESETS.glob("*.yaml")}
    assert shipped <= {use.preset for use in USES} | ELSEWHERE | CONFIGURED
    assert {use.preset for use in USES} | ELSEWHERE <= shipped


@pytest.mark.parametrize("preset", ["slack", "openai"])
def test_a_preset_lets_nobody_else_in(lab: Lab, preset: str) -> None:
    command = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_connect}", "https://web.lab.test/"]
    told = run_with_secrets(lab, {}, "--preset", preset, cmd=command)
    assert told.result.stdout == "403", told.result.told()
    assert lab.requests_seen() == []


@pytest.mark.parametrize(
    ("preset", "variable"), [("pip", "PIP_INDEX_URL"), ("npm", "npm_config_registry")]
)
def test_a_preset_of_a_package_manager_lets_the_configured_host_in_and_no_other(
    lab: Lab, preset: str, variable: str
) -> None:
    hosts = ("mine.pool.test", "other.pool.test")
    command = ["curl", "-sS", "-w", "%{http_connect} "]
    command += [word for host in hosts for word in ("-o", "/dev/null", f"https://{host}/simple/")]
    result = netns_run(
        *("--preset", preset), cmd=command, lab=lab, env={variable: f"https://{hosts[0]}/simple/"}
    )
    assert result.stdout.split() == ["200", "403"], result.told()
    assert [seen["host"] for seen in lab.requests_seen()] == [hosts[0]], result.told()


def test_the_preset_of_apt_lets_the_configured_archive_in_and_no_other(
    lab: Lab, tmp_path: Path
) -> None:
    """The archive is configured in a mount namespace of the test's own."""
    hosts = ("mine.pool.test", "other.pool.test")
    sources = f"Types: deb\nURIs: https://{hosts[0]}/debian\nSuites: stable\nComponents: main\n"
    (tmp_path / "lab.sources").write_text(sources)
    mounts = 'mount --bind "$1" /etc/apt/sources.list.d || exit 99; shift\n'
    mounts += "[ ! -e /etc/apt/sources.list ] || mount --bind /dev/null /etc/apt/sources.list\n"
    command = ["curl", "-sS", "-w", "%{http_connect} "]
    command += [word for host in hosts for word in ("-o", "/dev/null", f"https://{host}/debian/")]
    inside = [NETNS_RUN, *lab.run_args(), "--preset", "apt", "--", *command]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounts + 'exec "$@"', "sh", str(tmp_path), *inside],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=lab.work,
    )
    assert done.stdout.split() == ["200", "403"], done.stderr
    assert [seen["host"] for seen in lab.requests_seen()] == [hosts[0]]
