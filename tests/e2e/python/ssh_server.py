"""usage: ssh_server.py PORT DIRECTORY: serves the git repositories in DIRECTORY, for `lab_ssh`.

Ends with its standard input, so also when the test that started it was killed.
"""

import asyncio
import shlex
import sys
from pathlib import Path
from typing import Any

import asyncssh


class Everybody(asyncssh.SSHServer):
    def begin_auth(self, username: str) -> bool:
        return False


async def main(port: int, directory: Path) -> None:
    async def run(process: "asyncssh.SSHServerProcess[bytes]") -> None:
        words = shlex.split(process.command or "")
        if words[:1] == ["git-upload-pack"]:
            repository = directory / Path(words[1]).name
            git = await asyncio.create_subprocess_exec(
                *("git", "-c", "safe.directory=*", "upload-pack", str(repository)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            await process.redirect(stdin=git.stdin, stdout=git.stdout)
            process.exit(await git.wait())
        else:
            process.exit(127)

    options: dict[str, Any] = {"encoding": None, "process_factory": run}
    key = asyncssh.generate_private_key("ssh-ed25519")
    async with asyncssh.listen(
        "", port, server_factory=Everybody, server_host_keys=[key], **options
    ):
        print("listening", flush=True)
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
