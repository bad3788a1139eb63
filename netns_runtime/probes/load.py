"""Compiles bpf/ with bcc, loads and pins it: the only module that imports bcc, once per boot.

It runs in a child process, so that the supervisor neither keeps a compiler in memory nor shares its
standard error with one. It either leaves a complete directory of pins or none, and what compiler or
verifier objected to comes back as ProbeUnavailable: two short lines, the whole text in `details`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import traceback
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.probes import syscall
from netns_runtime.probes.btf import executable_offsets
from netns_runtime.probes.headers import merged_tree
from netns_runtime.probes.hooks import HOOKS
from netns_runtime.probes.own_headers import own_tree
from netns_runtime.probes.probe import MAPS, create_ring
from netns_runtime.probes.records import RINGS
from netns_runtime.probes.unavailable import ProbeUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

LOCKDOWN: Final = "/sys/kernel/security/lockdown"
_LOG_BYTES: Final = 1 << 24


def verifier_lines(log: str) -> tuple[str, str]:
    """What the verifier objected to, and at which instruction: the last two lines that say so.

    Linux 7.3 explains itself at length after that (seen there; 6.18 does not yet).
    """
    told_first = log.partition("\nVerification failed:")[0]
    lines = [line.strip() for line in told_first.splitlines() if line.strip()]
    told = [
        line
        for line in lines
        if not re.match(r"(processed \d+ insns|verification time|stack)", line)
    ]
    if not told:
        return "the verifier gave no reason", ""
    where = next((line for line in reversed(told[:-1]) if re.match(r"\d+: \(", line)), "")
    return told[-1], where


def compiler_line(text: str) -> str:
    """The first error of a compiler's output."""
    return next((line.strip() for line in text.splitlines() if "error:" in line), "")


def executable_flags(lacks: frozenset[str] = frozenset()) -> list[str]:
    """-D of every offset, or nothing where BTF is missing or lockdown forbids reading memory."""
    if "btf" in lacks:
        return []
    with contextlib.suppress(OSError), open(LOCKDOWN, encoding="ascii") as file:
        if "[confidentiality]" in file.read():
            return []
    return [f"-D{name}={offset}" for name, offset in executable_offsets().items()]


@contextlib.contextmanager
def _standard_error_in(fd: int) -> Iterator[None]:
    kept = os.dup(2)
    os.dup2(fd, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _compile(source: str, flags: Sequence[str], cache: Path) -> Any:
    """With headers of our own; a bcc that wants others gets the distribution's."""
    try:
        return _compile_in(own_tree(cache), source, flags)
    except ProbeUnavailable as error:
        with contextlib.suppress(ProbeUnavailable):
            return _compile_in(merged_tree(cache), source, flags)
        raise error


def _compile_in(tree: Path, source: str, flags: Sequence[str]) -> Any:
    os.environ["BCC_KERNEL_SOURCE"] = str(tree)
    try:
        import bcc
    except ImportError as error:
        raise ProbeUnavailable("bcc is not installed", remedy="install python3-bpfcc") from error
    said = os.memfd_create("bcc")
    try:
        with _standard_error_in(said):
            return bcc.BPF(text=source.encode(), cflags=list(flags))
    except Exception as error:
        os.lseek(said, 0, os.SEEK_SET)
        text = os.read(said, 1 << 20).decode("utf-8", "replace")
        why = compiler_line(text) or str(error)
        raise ProbeUnavailable(
            f"bcc cannot build the probe: {why}", remedy="run with -v for all of it", details=text
        ) from error
    finally:
        os.close(said)


def _load(module: Any, name: str, kind: int, attach_type: int) -> int:
    code = module.dump_func(name.encode())
    try:
        return syscall.load_program(kind, attach_type, code, name)[0]
    except OSError:
        pass
    try:
        return syscall.load_program(kind, attach_type, code, name, log_size=_LOG_BYTES)[0]
    except OSError as error:
        log = error.log if isinstance(error, syscall.VerifierRefused) else ""
        what, where = verifier_lines(log) if log else (os.strerror(error.errno or 0), "")
        raise ProbeUnavailable(
            f"the kernel refused program {name}: {what}",
            remedy="-v shows the verifier's whole log",
            where=where,
            details=log,
        ) from error


def load_tracing(
    source: str, flags: Sequence[str], cache: Path, maps: Sequence[str], programs: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, int]]:
    """Descriptors of maps and of programs (name to BPF_PROG_TYPE_*), in this process, not pinned.

    The caller owns them. Raises ProbeUnavailable.
    """
    module = _compile(source, flags, cache)
    try:
        loaded = {name: _load(module, name, kind, 0) for name, kind in programs.items()}
        return {name: os.dup(_map_fd(module, name)) for name in maps}, loaded
    finally:
        # Otherwise bcc keeps its descriptors until the process exits.
        module.cleanup()


def _map_fd(module: Any, name: str) -> int:
    fd: int = module.get_table(name.encode("ascii")).map_fd
    return fd


def _compile_and_pin(directory: Path, source: str, flags: Sequence[str], cache: Path) -> None:
    module = _compile(source, flags, cache)
    # bpffs allows no dot in a name.
    partial = directory.with_name(directory.name + "-new")
    remove_directory(partial)
    partial.mkdir(mode=0o700)
    try:
        for name in MAPS:
            syscall.pin(module[name].map_fd, str(partial / name))
        for number in range(RINGS):
            os.close(create_ring(module["rings"].map_fd, number, partial / f"ring_{number}"))
        for hook in HOOKS:
            program = _load(module, hook.program, hook.kind, hook.attach_type)
            syscall.pin(program, str(partial / hook.program))
            os.close(program)
        partial.rename(directory)
    except BaseException:
        remove_directory(partial)
        raise


def remove_directory(directory: Path) -> None:
    """Unpin everything in a directory of pins; what is attached stays until its cgroup is gone."""
    with contextlib.suppress(FileNotFoundError):
        for entry in list(directory.iterdir()):
            entry.unlink()
        directory.rmdir()


def compile_and_pin(directory: Path, source: str, flags: Sequence[str], cache: Path) -> None:
    """Leave `directory` (in bpffs, not there yet) with every map and program pinned.

    `flags` are the -D that `source` needs. Raises ProbeUnavailable.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        answer: dict[str, str] = {}
        try:
            _compile_and_pin(directory, source, flags, cache)
        except ProbeUnavailable as error:
            answer = {
                "what": error.what,
                "remedy": error.remedy,
                "where": error.where,
                "details": error.details,
            }
        except BaseException as error:
            answer = {
                "what": f"the probe was not loaded: {error}",
                "details": traceback.format_exc(),
            }
        with os.fdopen(writing, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(text) if text else {"what": "the compiler of the probe died"}
    if answer:
        raise ProbeUnavailable(
            answer["what"],
            remedy=answer.get("remedy", ""),
            where=answer.get("where", ""),
            details=answer.get("details", ""),
        )
