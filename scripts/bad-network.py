#!/usr/bin/env python3
"""A daemon, `undertone send` and `undertone listen` over QUIC, with a bad network in between: the figures of docs/quic.md.

    python3 scripts/bad-network.py target/release/undertone RECORDING.wav [SECONDS]

The recording (24 kHz, mono, 16 bits) is fed in real time, again and again. Only the standard library is used.
"""
import contextlib
import json
import os
import random
import re
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import wave

RATE = 24_000
QUIC, HTTP = 17_704, 17_703
SMALL = 45  # bytes of acknowledgements at most
IP = 28  # bytes of the heads of IPv4 and UDP
# Name, loss, mean length of a burst in packets, jitter in ms, outage in s from second 10 on, who suffers.
SCENARIOS = [
    ("clean", 0.00, 1, 0, 0, "listener"),
    ("jitter 20 ms", 0.00, 1, 20, 0, "listener"),
    ("5 % loss in bursts", 0.05, 2, 0, 0, "listener"),
    ("10 % loss in bursts", 0.10, 2, 0, 0, "listener"),
    ("10 % and jitter 20 ms", 0.10, 2, 20, 0, "listener"),
    ("outage of 2 s", 0.00, 1, 0, 2, "listener"),
    ("5 % loss, publisher", 0.05, 2, 0, 0, "publisher"),
]


class Network(threading.Thread):
    """Passes datagrams between one client and the daemon; one direction suffers."""

    def __init__(self, loss, burst, jitter_ms, outage_s, to_client):
        super().__init__(daemon=True)
        self.front = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.front.bind(("127.0.0.1", 0))
        self.back = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.back.connect(("127.0.0.1", QUIC))
        self.port = self.front.getsockname()[1]
        self.leave = 1 / burst
        self.enter = self.leave * loss / (1 - loss)
        self.jitter, self.outage, self.to_client = jitter_ms / 1e3, outage_s, to_client
        self.random, self.bad, self.began, self.running = random.Random(1), False, None, True
        self.passed = self.dropped = 0
        self.bytes = [0, 0]  # to the daemon, to the client; since it began

    def drops(self, now):
        self.bad = self.random.random() < (1 - self.leave if self.bad else self.enter)
        out = self.outage and self.began and 10 <= now - self.began < 10 + self.outage
        return self.bad or out

    def run(self):
        client, waiting = None, []
        while self.running:
            wait = max(0, min((t for t, *_ in waiting), default=time.monotonic() + 0.1) - time.monotonic())
            for ready in select.select([self.front, self.back], [], [], wait)[0]:
                now = time.monotonic()
                if ready is self.front:
                    data, client = self.front.recvfrom(2048)
                    suffers = not self.to_client
                else:
                    try:
                        data = self.back.recv(2048)
                    except ConnectionError:
                        continue
                    suffers = self.to_client
                if self.began:
                    self.bytes[ready is self.back] += len(data) + IP
                # Bundles only: packets of QUIC's own would take losses off them.
                if suffers and self.began and len(data) > SMALL and self.drops(now):
                    self.dropped += 1
                    continue
                self.passed += 1
                held = self.random.uniform(0, self.jitter) if suffers else 0
                waiting.append((now + held, ready is self.front, data))
            now = time.monotonic()
            for _, up, data in [w for w in waiting if w[0] <= now]:
                with contextlib.suppress(ConnectionError):
                    self.back.send(data) if up else self.front.sendto(data, client)
            waiting = [w for w in waiting if w[0] > now]


def fed(process, pcm, seconds, times):
    """Writes samples when their time has come; notes when."""
    start, piece = time.monotonic(), RATE // 50
    for n in range(int(seconds * 50)):
        time.sleep(max(0, start + (n + 1) / 50 - time.monotonic()))
        at = n * piece * 2 % (len(pcm) - piece * 2)
        at -= at % 2
        process.stdin.write(pcm[at : at + piece * 2])
        process.stdin.flush()
        times.append(time.monotonic())
    process.stdin.close()


def heard(process, times, latencies):
    """Reads samples as they come; notes how long after it was recorded the first of each piece can be played."""
    samples = 0
    while data := os.read(process.stdout.fileno(), 1 << 16):
        now = time.monotonic()
        frame = samples // (RATE // 50)
        if frame < len(times):
            # The sample was recorded at most 20 ms before its piece was written.
            latencies.append((now - times[frame] + 0.02) * 1e3)
        samples += len(data) // 2
    return samples


def stages(found, stop):
    while not stop.wait(0.5):
        with urllib.request.urlopen(f"http://127.0.0.1:{HTTP}/status.json") as answer:
            found += [listener["stages"] for listener in json.load(answer)["quic_listeners"]]


def run(binary, pcm, seconds, scenario):
    name, loss, burst, jitter, outage, who = scenario
    network = Network(loss, burst, jitter, outage, who == "listener")
    network.start()
    ports = {"listener": QUIC, "publisher": QUIC, who: network.port}
    listen = subprocess.Popen(
        [binary, "listen", "-", "--raw", f"s16le:{RATE}:1", "--from", f"quic://127.0.0.1:{ports['listener']}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    time.sleep(3)
    send = subprocess.Popen(
        [binary, "send", "-", "--raw", f"s16le:{RATE}:1", "--to", f"quic://127.0.0.1:{ports['publisher']}"],
        stdin=subprocess.PIPE)
    times, latencies, found, stop = [], [], [], threading.Event()
    time.sleep(3)
    network.began = time.monotonic()
    threading.Thread(target=stages, args=(found, stop), daemon=True).start()
    threading.Thread(target=fed, args=(send, pcm, seconds, times), daemon=True).start()
    samples = heard(listen, times, latencies)
    stop.set()
    words = listen.stderr.read().decode()
    listen.wait(), send.wait()
    network.running = False
    report = re.search(r"undertone: (.* bundles lost.*)", words)
    middle = latencies[len(latencies) // 4 :] or [0]
    print(f"{name}: {samples / RATE:.1f} s of {seconds:.1f} s heard; {report.group(1) if report else words}; "
          f"network dropped {network.dropped} of {network.dropped + network.passed}; IP {network.bytes[0] / 125 / seconds:.2f} kbit/s to the daemon, "
          f"{network.bytes[1] / 125 / seconds:.2f} from it; latency "
          f"{statistics.median(middle):.0f} ms (95 %: {sorted(middle)[int(len(middle) * 0.95) - 1]:.0f}); stages {max(found, default=0)}"
          f" to {min(found, default=0)}, at the end {found[-1] if found else 0}", flush=True)


def main():
    binary, recording = sys.argv[1:3]
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 40.0
    with wave.open(recording) as w:
        assert (w.getframerate(), w.getnchannels(), w.getsampwidth()) == (RATE, 1, 2), "24 kHz, mono, 16 bits"
        pcm = w.readframes(w.getnframes())
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
        config.write(f'[quic]\nlisten = "127.0.0.1:{QUIC}"\n[http]\nlisten = "127.0.0.1:{HTTP}"\n[codes]\nlisten = ""\n')
        config.flush()
        daemon = subprocess.Popen([binary, "serve", "--config", config.name], stdout=subprocess.DEVNULL)
        try:
            time.sleep(5)
            for scenario in SCENARIOS:
                run(binary, pcm, seconds, scenario)
        finally:
            daemon.terminate()
            daemon.wait()


if __name__ == "__main__":
    main()
