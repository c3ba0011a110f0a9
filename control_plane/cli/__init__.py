"""The program `skerry`, the operators' command line: a thin face of the HTTP API.

Where the server is and who asks comes from the home folder of a server on this machine (`--home` or `SKERRY_HOME`),
or from `SKERRY_URL` and `SKERRY_TOKEN` for any other. `--json` prints the API's answer instead of a table.
"""

import sys


def main() -> int:
    """Run the command line, or say which extra it wants: a device installs the agent alone."""
    try:
        from control_plane.cli.program import main as run
    except ModuleNotFoundError as error:
        print(f"skerry: expected the module {error.name}, got none: pip install 'skerry[cli]'", file=sys.stderr)
        return 4
    return run()
