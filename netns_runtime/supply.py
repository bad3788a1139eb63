"""From `--preset` and `--secret` to policies, bindings and values, before anything is made.

A policy file's binding of a name wins over a preset's; a name that nobody binds is looked for in
the shipped presets, and refused if none knows it. A variable of the caller's that a given policy or
preset binds is a secret as well, because CMD would get its value otherwise. Ends in `Supplied` and
lines for -v, or in one UsageError that never shows a value.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import UsageError
from netns_runtime.policy import Policy, load_policy
from netns_runtime.policy.hosts import host_matches, is_wildcard
from netns_runtime.policy.rules import Binary, Rule
from netns_runtime.secret import PREFIX, Binding
from netns_runtime.secretsource import Found, read_secret
from netns_runtime.spec import SecretSource
from netns_runtime.supplied import Supplied, check_arguments, guard_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from netns_runtime.presets.account import Account
    from netns_runtime.spec import Spec

# The proxy gets them in one message with its policy (proxy.control.MESSAGE).
TOTAL_LIMIT: Final = 512 << 10


def preset_policy(name: str, account: Account) -> Policy:
    """A preset as a policy; its rules say `preset NAME`. Raises UsageError."""
    from netns_runtime import presets

    return _from_preset(name, presets.text_of(name, account))


def _from_preset(name: str, text: str) -> Policy:
    policy = load_policy(text.encode("utf-8"), f"preset {name}")
    return replace(
        policy, secrets=tuple(replace(binding, preset=name) for binding in policy.secrets)
    )


def merged(files: Sequence[Policy], presets: Sequence[Policy], allow: Policy) -> Policy:
    """One policy of all; of two bindings of a name the file's. Raises UsageError for two files'."""
    given = [binding for policy in files for binding in policy.secrets]
    twice = [
        name for name, count in Counter(binding.name for binding in given).items() if count > 1
    ]
    if twice:
        texts = " and ".join(binding.text for binding in given if binding.name == twice[0])
        raise UsageError(
            f"the secret {twice[0]} is bound twice, {texts}", remedy="keep one of them"
        )
    whole = Policy.merged(*files, *presets, allow)
    bindings = {binding.name: binding for binding in reversed(whole.secrets)}
    notes = [
        f"{binding.name} is bound by {bindings[binding.name].text}, not by {binding.text}"
        for binding in whole.secrets
        if bindings[binding.name] is not binding
    ]
    kept = tuple(binding for binding in whole.secrets if bindings[binding.name] is binding)
    return replace(whole, notes=(*whole.notes, *notes), secrets=kept)


def supply(
    spec: Spec,
    policy: Policy,
    environment: Mapping[str, str],
    *,
    real_path: Callable[[str, str], str],
    identify: Callable[[Policy], Policy],
) -> tuple[Supplied | None, tuple[str, ...]]:
    """Read every secret there is; None where there is none. And what to say under -v."""
    named = Counter(source.name for source in spec.secrets)
    if named and (name := max(named, key=named.__getitem__)) and named[name] > 1:
        raise UsageError(f"--secret {name}: given twice", remedy="give it once")
    known = {binding.name: binding for binding in policy.secrets}
    bindings = {source.name: _binding_of(source.name, known) for source in spec.secrets}
    notes: list[str] = []
    sources = list(spec.secrets)
    for binding in policy.secrets:
        value = environment.get(binding.name, "")
        if binding.name in bindings or not value or value.startswith(PREFIX):
            continue
        bindings[binding.name] = binding
        sources.append(SecretSource(binding.name, "env", binding.name))
        notes.append(f"{binding.name} of the environment is a secret: {binding.text} binds it")
    notes += _notes_on_unset(spec.presets, policy, bindings, environment)
    if not sources:
        return None, tuple(notes)
    if not spec.report:
        _check_reachable(policy, [bindings[source.name] for source in spec.secrets])
    _check_descriptors(spec)
    guard_memory()
    found = {source.name: read_secret(source, environment, real_path) for source in sources}
    _check_found(found, spec)
    readers = tuple(_reader(binding) for binding in bindings.values())
    identified = identify(Policy(tuple(rule for _, rule in filter(None, readers))))
    notes += identified.notes
    at_endpoint = [name for name, _ in filter(None, readers)]
    supplied = Supplied(
        tuple(bindings.values()),
        {name: each.value for name, each in found.items()},
        tuple(zip(at_endpoint, identified.rules, strict=True)),
        os.urandom(32).hex() if at_endpoint else "",
        tuple(sorted({each.path for each in found.values() if each.path is not None})),
        tuple(source.place for source in sources if source.kind == "env"),
        {source.name: str(source) for source in sources},
    )
    check_arguments(spec.command, supplied.secrets)
    return supplied, (*notes, *notes_on(policy, supplied.bindings))


def _binding_of(name: str, known: Mapping[str, Binding]) -> Binding:
    if name in known:
        return known[name]
    from netns_runtime import presets

    for preset in presets.that_mention(name):
        loaded = _from_preset(preset, presets.shipped(preset))
        for binding in loaded.secrets:
            if binding.name == name:
                return binding
    raise UsageError(
        f"--secret {name}: nothing says where it may go",
        remedy=f"bind {name} under `secrets:` in a policy; presets know their own names "
        "(netns-debug preset list)",
    )


def _check_reachable(policy: Policy, bindings: Iterable[Binding]) -> None:
    """Raises UsageError for a secret that was asked for and that no rule lets go anywhere.

    With --report, which finds out what to allow, it is only noted (`notes_on`).
    """
    for binding in bindings:
        if binding.expose != "placeholder" or _is_reachable(policy, binding):
            continue
        from netns_runtime import presets

        knowing = presets.that_mention(binding.name)
        by_preset = f"--preset {knowing[0]} or " if knowing else ""
        raise UsageError(
            f"--secret {binding.name}: no rule allows any of its hosts",
            remedy=f"add {by_preset}--allow {binding.hosts[0]}:443",
        )


def _is_reachable(policy: Policy, binding: Binding) -> bool:
    # A rule without a host is for any, at its `allowed_ips`.
    return any(
        not endpoint.host or _overlaps(host, endpoint.host)
        for rule in policy.rules
        for endpoint in rule.endpoints
        for host in binding.hosts
    )


def _notes_on_unset(
    presets: Iterable[str],
    policy: Policy,
    bindings: Mapping[str, Binding],
    environment: Mapping[str, str],
) -> list[str]:
    """A line for each preset none of whose secrets is here: sudo may have dropped its variable."""
    notes = []
    for preset in dict.fromkeys(presets):
        names = [binding.name for binding in policy.secrets if binding.preset == preset]
        if not names or any(name in bindings or environment.get(name) for name in names):
            continue
        said = f"{names[0]} is" if len(names) == 1 else f"{', '.join(names)} are"
        notes.append(
            f"preset {preset}: {said} not set; sudo passes on only what --preserve-env names"
        )
    return notes


def _reader(binding: Binding) -> tuple[str, Rule] | None:
    """Who may read it at the endpoint. Raises UsageError where nobody is named."""
    if binding.expose != "endpoint":
        return None
    if not binding.executables:
        raise UsageError(
            f"{binding.text}: `expose: endpoint` names no executable that may read {binding.name}",
            remedy="list them under `binaries`",
        )
    return binding.name, Rule(binding.text, (), tuple(map(Binary, binding.executables)))


def _check_descriptors(spec: Spec) -> None:
    ours = {
        "--keep-fd": tuple(map(str, spec.keep_fds)),
        "--status-fd": (str(spec.status_fd),),
        "--audit": ((spec.audit or "").removeprefix("fd:"),),
    }
    for source in spec.secrets:
        for option, numbers in ours.items():
            if source.kind == "fd" and source.place in numbers:
                raise UsageError(
                    f"--secret {source.name}={source}: {option} has that descriptor",
                    remedy="pass the secret by one of its own",
                )


def _check_found(found: Mapping[str, Found], spec: Spec) -> None:
    """Nothing that CMD keeps open may be a file that a value came from."""
    if sum(len(each.value.encode("utf-8")) for each in found.values()) > TOTAL_LIMIT:
        raise UsageError(
            f"all secrets together are longer than {TOTAL_LIMIT >> 10} KiB", remedy="give fewer"
        )
    for number in (0, 1, 2, *spec.keep_fds):
        try:
            status = os.fstat(number)
        except OSError:
            continue
        for name, each in found.items():
            if each.inode == (status.st_dev, status.st_ino):
                raise UsageError(
                    f"descriptor {number}, which CMD gets, is the file of the secret {name}",
                    remedy="keep that from CMD",
                )


def notes_on(policy: Policy, bindings: Iterable[Binding]) -> tuple[str, ...]:
    """Where a bound secret will not be put in, although its host is allowed; or is not allowed."""
    notes = []
    endpoints = [(rule, endpoint) for rule in policy.rules for endpoint in rule.endpoints]
    for binding in bindings:
        if binding.expose == "env" or not binding.hosts:
            continue
        for rule, endpoint in endpoints:
            if not any(_overlaps(host, endpoint.host) for host in binding.hosts):
                continue
            inspection = endpoint.inspection
            if inspection is not None and inspection.tls == "skip":
                why = "`tls: skip`"
            elif inspection is not None and inspection.protocol == "tcp":
                why = "`protocol: tcp`"
            else:
                continue
            notes.append(
                f"{binding.name} is not put in on the way to {endpoint.host}: "
                f"{why} of {rule.text} keeps its TLS closed"
            )
        if not _is_reachable(policy, binding):
            notes.append(f"{binding.name} has nowhere to go: no rule allows its hosts")
    return tuple(notes)


def _overlaps(pattern: str, other: str) -> bool:
    """Whether some host is covered by both. Each wildcard stands for itself and for one label."""
    if not other or pattern == other:
        return bool(other)
    if is_wildcard(pattern):
        return host_matches(pattern, other.replace("**", "x").replace("*", "x"))
    return host_matches(other, pattern)
