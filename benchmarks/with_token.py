"""Run the unmodified load generator, with a token in each of its requests and first frames.

    with_token.py MESHBENCH TOKEN [the generator's own options]

The generator has no option for a token. Its file stays as it is: the two classes that write to the daemon are given
children that add the token, and its own `main` runs. Its floors are asked with the token too, and ignore it.
"""

import sys
from pathlib import Path
from typing import Any


def main() -> None:
    harness_path, token = Path(sys.argv[1]).resolve(), sys.argv[2]
    sys.path.insert(0, str(harness_path.parent))
    import meshbench

    class Client(meshbench.Client):
        async def call(self, *what: Any, content_type: str = "application/json", **how: Any) -> tuple[int, bytes]:
            # a header more, behind the one header whose value a caller may choose
            bearer = f"{content_type}\r\nAuthorization: Bearer {token}"
            status, body = await super().call(*what, content_type=bearer, **how)
            return status, body

    class Peer(meshbench.Peer):
        def send(self, frame: dict[str, Any]) -> None:
            super().send({**frame, "auth_token": token} if frame["type"] == "connect" else frame)

    meshbench.Client, meshbench.Peer = Client, Peer
    sys.argv = [str(harness_path), *sys.argv[3:]]
    meshbench.main()


if __name__ == "__main__":
    main()
