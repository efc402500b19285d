"""The HTTP process stays light."""

import subprocess
import sys


def test_server_imports_no_torch() -> None:
    code = "import sys, nsa_api.server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
