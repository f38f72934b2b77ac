"""What a process does to itself, seen in a process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

PROGRAM = """
import os, resource
from mesh.serving.hygiene import protect_process
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
protect_process()
print(resource.getrlimit(resource.RLIMIT_CORE), os.access(f"/proc/{os.getpid()}/environ", os.R_OK), flush=True)
input()
"""


def test_no_core_is_left_and_the_owner_can_still_tell_whose_it_is() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "(0, 0) True"
        assert os.stat(f"/proc/{process.pid}/environ").st_uid == os.getuid()
        process.send_signal(signal.SIGKILL)
