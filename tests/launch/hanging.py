"""A decoder that does what a hostile picture could make it do: started instead of the real one by
tests.
"""

import os
import signal
import sys
import time

from launch.inputs import decoder

# The first bytes of a "picture" and what it makes of the process that decodes it.
TRICKS = (b"spin", b"sleep", b"crash", b"die", b"eat", b"lie", b"print", b"exit")


def act(data):
    from PIL import Image

    trick = bytes(data).partition(b" ")[0]
    if trick == b"spin":
        # Uses processor time, which SIGPROF counts.
        while True:
            pass
    elif trick == b"sleep":
        # Uses none: only the alarm of the clock ends it.
        time.sleep(3600)
    elif trick == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif trick == b"die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif trick == b"eat":
        # Far over the limit of address space, so that it is refused before a page is touched.
        bytearray(64 << 30)
    elif trick == b"lie":
        # The descriptor of the answers. 0xff in all places is a length that no message has.
        os.write(3, b"\xff" * 64)
    elif trick == b"print":
        print("noise", flush=True)
        # Past Python's buffers, as a C library writes: descriptor 1 must not be that of the
        # answers.
        os.write(1, b"more noise")
        return Image.new("RGB", (4, 4), "red")
    elif trick == b"exit":
        # SystemExit is no Exception: the decoder does not answer, it ends.
        sys.exit(7)
    return None


def main():
    # Tests do not wait as long as jobs do.
    decoder.SECONDS, decoder.CLOCK = 0.3, 6.0
    real = decoder._decoded

    def decoded(request, data):
        from perturb import photographs

        plain = photographs.decode
        # In place of the innermost step, so that limits, pipes and answers are the real ones.
        photographs.decode = lambda data, channels=3: act(data) or plain(data, channels)
        try:
            return real(request, data)
        finally:
            photographs.decode = plain

    decoder._decoded = decoded
    decoder.serve()


if __name__ == "__main__":
    main()
