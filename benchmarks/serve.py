"""Tokens per second that 1, 4 and 8 clients of a server get together, and how long each waits for its first.

The server speaks OpenAI's interface: cpulm's, or llama.cpp's for comparison. Each client asks for one text
after another, streamed, with prompts and seeds of its own.

    cpulm serve runs/small-1 --key KEY
    python benchmarks/serve.py http://127.0.0.1:8000/v1 --key KEY
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import threading
import time
from urllib.parse import urlsplit


class Client(threading.Thread):
    """Asks for texts until it is told to stop; notes the tokens of each and the wait for its first piece."""

    def __init__(self, number: int, arguments: argparse.Namespace, until: float) -> None:
        super().__init__()
        self.number, self.arguments, self.until = number, arguments, until
        self.tokens, self.waits = 0, list[float]()

    def run(self) -> None:
        address = urlsplit(self.arguments.base_url)
        assert address.hostname is not None
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=600)
        head = {"Authorization": f"Bearer {self.arguments.key}", "Content-Type": "application/json"}
        while time.perf_counter() < self.until:
            body = {
                "prompt": f"{self.number} " * (self.arguments.prompt_tokens // 2),
                "max_tokens": self.arguments.tokens,
                "seed": self.number,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            began = time.perf_counter()
            connection.request("POST", f"{address.path}/completions", json.dumps(body), head)
            answer = connection.getresponse()
            if answer.status != 200:
                raise SystemExit(answer.read().decode())
            first = True
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if first and event["choices"]:
                    self.waits.append(time.perf_counter() - began)
                    first = False
                if event.get("usage"):
                    self.tokens += event["usage"]["completion_tokens"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("base_url")
    parser.add_argument("--key", required=True)
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 4, 8])
    parser.add_argument("--tokens", type=int, default=100, help="of a text")
    parser.add_argument("--prompt-tokens", type=int, default=20, help="of a prompt, nearly")
    parser.add_argument("--seconds", type=float, default=10, help="that each number of clients asks for")
    arguments = parser.parse_args()
    for count in arguments.clients:
        began = time.perf_counter()
        clients = [Client(number, arguments, began + arguments.seconds) for number in range(count)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        seconds = time.perf_counter() - began
        tokens = sum(client.tokens for client in clients)
        waits = [wait for client in clients for wait in client.waits]
        print(
            f"{count} clients: {tokens / seconds:7.1f} tokens/s; first piece after "
            f"{statistics.median(waits):.3f} s (most {max(waits):.3f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
