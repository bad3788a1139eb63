"""What real resolvers make of a refusal: they give up at once, and for good.

The server of tests/bench/dns.py runs with its clients in a network and a mount namespace of their
own, where resolv.conf names it; nothing can leave.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

SETTING = """
ip link set lo up
ip address add 10.200.0.1/32 dev lo
ip address add fd00:c8::2/128 dev lo nodad  # or glibc asks for no AAAA (AI_ADDRCONFIG)
mount -t tmpfs tmpfs /mnt
echo 'nameserver 10.200.0.1' >/mnt/resolv.conf
echo 'hosts: files dns' >/mnt/nsswitch.conf
echo '127.0.0.1 localhost' >/mnt/hosts
for file in resolv.conf nsswitch.conf hosts; do
  mount --bind /mnt/$file "$(readlink -f /etc/$file)"
done
"$1" -m tests.bench.dns serve &
server=$!
until getent ahosts up.test >/dev/null; do
  kill -0 $server
  sleep 0.05
done
start=$(date +%s%N)
code=0
sh -c "$2" || code=$?
end=$(date +%s%N)
kill $server
echo "took $(((end - start) / 1000000)) ms"
exit $code
"""
NODE = """
require('dns').lookup(process.argv[1], {all: true}, (error, found) => {
  console.log(error ? error.code : found.map(entry => entry.address).sort().join(' '));
});
"""


def run_inside(command: str) -> tuple[int, str, int]:
    """Exit status, output and milliseconds of a command."""
    setting = ("unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    words = (*setting, "sh", "-euc", SETTING, "sh", sys.executable, command)
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert "took " in done.stdout, done.stderr
    output, _, took = done.stdout.rpartition("took ")
    return done.returncode, output.strip(), int(took.split()[0])


def test_glibc_takes_a_refused_name_for_one_that_does_not_exist() -> None:
    code, output, took = run_inside("getent ahosts refused.test")
    assert (code, output) == (2, "")
    assert took < 1000


def test_glibc_resolves_an_allowed_name_in_both_families_and_back() -> None:
    code, output, _ = run_inside("getent ahosts up.test")
    addresses = {line.split()[0] for line in output.splitlines()}
    assert code == 0
    assert {":" in address for address in addresses} == {True, False}
    [ipv4] = (address for address in addresses if ":" not in address)
    code, output, _ = run_inside(f"getent ahostsv4 UP.TEST; getent hosts {ipv4}")
    assert (code, output.splitlines()[-1].split()) == (0, [ipv4, "up.test"])


def test_python_says_that_the_name_is_unknown_and_not_to_try_again() -> None:
    program = "import socket; socket.getaddrinfo('refused.test', 443)"
    code, _, took = run_inside(f'{sys.executable} -c "{program}" 2>/dev/null')
    assert code == 1
    assert took < 2000
    check = (
        f'{sys.executable} -c "import socket\ntry: {program.partition("; ")[2]}\n'
        'except socket.gaierror as e: print(e.errno == socket.EAI_NONAME)"'
    )
    assert run_inside(check)[1] == "True"


def test_node_says_enotfound_at_once() -> None:
    if shutil.which("node") is None:
        pytest.skip("no node")
    code, output, took = run_inside(f'node -e "{NODE}" refused.test')
    assert (code, output) == (0, "ENOTFOUND")
    assert took < 3000


def test_a_database_name_of_one_label_is_resolved_as_it_is_asked() -> None:
    code, output, took = run_inside("getent ahosts db")
    assert (code, output) == (2, "")
    assert took < 1000
