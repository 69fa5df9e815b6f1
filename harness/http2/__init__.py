"""The client's end of one HTTP/2 connection, out of stamped reads; no I/O and no clock here.

`h2` keeps the protocol: settings, header compression, the states of streams, what we may send. Two
kinds of frames it does not see. DATA, since it is the load: a stream's bytes are cut out of the
read and stamped here in 1 µs instead of 30. And GOAWAY, after which `h2` takes in no frame, though
the streams that the other side accepted go on. `h2` is told of a stream that ends in DATA as of one
that was reset, which frees it in the same way.

The windows that we grant are so large that the other side never waits for us: a stream's is larger
than the largest body that is taken in, the connection's is opened again when half of it is used.
"""

from harness.http2.reply import StreamReply, StreamUnprocessed
from harness.http2.session import Session

__all__ = ["Session", "StreamReply", "StreamUnprocessed"]
