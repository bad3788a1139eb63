"""The registries that npm is configured to fetch from, scoped ones included.

The environment stands over the user's .npmrc over the system's; a project's own .npmrc is not read:
it lies where CMD writes, or came with code that is not trusted. Where no registry is configured,
npm is asked for its default.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import UsageError
from netns_runtime.presets.origin import Origin, no_origin, parse_origin

if TYPE_CHECKING:
    from netns_runtime.presets.account import Account

# What Debian's package, a build from source and a package of nodejs.org take for the global one.
GLOBAL: Final = ("/etc/npmrc", "/usr/etc/npmrc", "/usr/local/etc/npmrc")
_SETTING: Final = re.compile(r"[ \t]*([^=;#\s][^=]*?)[ \t]*=[ \t]*(.*?)[ \t]*")
_VARIABLE: Final = re.compile(r"\$\{([^}?]+)\??\}")
_PREFIX: Final = "npm_config_"


def origins(account: Account) -> list[Origin]:
    """Raises UsageError where no registry is known."""
    settings = _settings(account)
    if "registry" not in settings:
        said = account.ask("npm", "config", "get", "registry", npm_config_update_notifier="false")
        settings["registry"] = ((said or "").strip(), "npm's own default")
    found = (parse_origin(url, f"{key} of {said_by}") for key, (url, said_by) in settings.items())
    known = [origin for origin in found if origin is not None]
    if not known and settings["registry"][0]:
        wrong = no_origin("registry", settings["registry"][1], settings["registry"][0])
        raise UsageError(f"--preset npm: {wrong}", remedy="correct it")
    if not known:
        raise UsageError(
            "--preset npm: no registry is configured and npm cannot be asked for its own",
            remedy="set registry in ~/.npmrc or npm_config_registry, or install npm",
        )
    return known


def _settings(account: Account) -> dict[str, tuple[str, str]]:
    """`registry` and `@scope:registry` with their values, the strongest of each."""
    variables = {
        name.lower().removeprefix(_PREFIX): (value, name)
        for name, value in account.environment.items()
        if name.lower().startswith(_PREFIX) and value
    }
    named = {key: variables[key][0] for key in ("globalconfig", "userconfig") if key in variables}
    system = [named["globalconfig"]] if "globalconfig" in named else GLOBAL
    user = named.get("userconfig", f"{account.home}/.npmrc")
    found: dict[str, tuple[str, str]] = {}
    for path in (*(account.root + path for path in system), user):
        for line in (account.read(path) or "").splitlines():
            match = _SETTING.fullmatch(line)
            if match is not None and _is_registry(match[1]):
                value = _VARIABLE.sub(lambda name: account.environment.get(name[1], ""), match[2])
                found[match[1]] = (value.strip("\"'"), path)
    found.update({key: value for key, value in variables.items() if _is_registry(key)})
    return found


def _is_registry(key: str) -> bool:
    return key == "registry" or (key.startswith("@") and key.endswith(":registry"))
