"""The short-lived process that holds the device's key while it proves it; the resident agent holds neither.

    python -m agent.identity.proof_child renew --state DIR     get the next certificate, and put it into the state
    folder python -m agent.identity.proof_child token --state DIR     print a token for HTTPS, as JSON
    python -m agent.identity.proof_child life --state DIR      print when the certificate begins and ends, as JSON

Errors are one line on standard error, and the exit status says who must act, as with `skerry-agent`.
"""

import argparse
import sys
from pathlib import Path

from agent.identity.errand import EXIT_CODES
from agent.identity.folder import StateFolder
from agent.identity.life import Life
from agent.identity.proof import buy_token, life_of, open_prover, renew
from skerry.errors import SkerryError
from skerry.wire import codec


def main() -> int:
    """Do one errand."""
    parser = argparse.ArgumentParser(prog="agent.identity.proof_child")
    parser.add_argument("errand", choices=("renew", "token", "life"))
    parser.add_argument("--state", type=Path, required=True)
    options = parser.parse_args()
    try:
        folder = StateFolder(options.state)
        prover = open_prover(folder)
        if options.errand == "token":
            said = codec.encode(buy_token(prover))
        elif options.errand == "life":
            said = codec.encode(life_of(prover.certificate))
        else:
            said = codec.encode(_renew(folder))
    except SkerryError as error:
        print(error, file=sys.stderr)
        return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)
    sys.stdout.buffer.write(said)
    return 0


def _renew(folder: StateFolder) -> Life:
    enrolled = renew(open_prover(folder))
    if enrolled.refuse_automatic:
        folder.keep_refusal()
    folder.keep_certificate(enrolled.certificate, broker_ca=enrolled.broker_ca)
    return life_of(enrolled.certificate)


if __name__ == "__main__":
    sys.exit(main())
