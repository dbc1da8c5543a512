"""Decodes one AEDAT 4 file; run as a program of its own, since the decoder ends its process when a file is damaged.

Writes an `.npz` of t, x, y, p and size (height and width) to standard output, or what is wrong to standard error. Its
arguments are the limit of the memory in bytes, the path to search for modules as JSON, and the file.
"""

from __future__ import annotations

import io
import json
import resource
import sys


def main(limit: str, search: str, path: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (int(limit), int(limit)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.path[:] = json.loads(search)
    import aedat
    import numpy as np

    decoder = aedat.Decoder(path)
    streams = {number: stream for number, stream in decoder.id_to_stream().items() if stream["type"] == "events"}
    if not streams:
        raise SystemExit("it has no stream of events")
    number = min(streams)
    packets = [packet["events"] for packet in decoder if packet["stream_id"] == number]
    if not packets:
        raise SystemExit("it has no events")
    events, stream = np.concatenate(packets), streams[number]
    made = io.BytesIO()
    size = np.array([stream["height"], stream["width"]])
    np.savez(made, t=events["t"], x=events["x"], y=events["y"], p=events["on"], size=size)
    sys.stdout.buffer.write(made.getvalue())


if __name__ == "__main__":
    main(*sys.argv[1:])
