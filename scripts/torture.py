"""What torture.sh does once its disk and its tools are there: see there."""

import contextlib
import glob
import hashlib
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

# A bundle: five frames of six stages, 300 bits and four bits of padding.
FRAMES, STAGES, LENGTH, EVERY = 5, 6, 38, 0.1
# Bundles that wait for the disk (src/service/record.rs), and how long a recording pauses after a failure.
QUEUE, PAUSE_S = 256, 10
# What a kill may take: what came in the last second.
KILL_S = 1.0
BINARY, FOLDER, MINUTES, KILLS = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
PARTS = sys.argv[5].split()
MODEL = os.environ.get("UNDERTONE_MODEL", "models/undertone-24k-v2")
MODEL_ID = hashlib.sha256(Path(f"{MODEL}/manifest.toml").read_bytes()).digest()[:8]
DISK, HANG = f"{FOLDER}/disk", f"{FOLDER}/hang"
RANDOM = random.Random(1)
faults = []


def say(text):
    print(text, flush=True)


def must(good, text):
    say(f"  {'ok' if good else 'FAIL'}: {text}")
    if not good:
        faults.append(text)


# --- the protocol, as far as it is needed (proto/undertone/v1/stream.proto) ---


def varint(n):
    out = b""
    while n >= 0x80:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def field(number, value):
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def message(number, *fields):
    body = field(number, b"".join(fields))
    return varint(len(body)) + body


def hello(role, stream):
    return message(1, field(1, 1), field(2, role), field(3, stream.encode()), field(4, MODEL_ID), field(5, STAGES), field(6, FRAMES))


def payload(stream, n):
    text = hashlib.shake_128(f"{stream} {n}".encode()).digest(LENGTH)
    return text[:-1] + bytes([text[-1] & 0xF0])


def bundle(stream, n):
    return message(3, field(1, n), field(2, n * FRAMES), field(3, FRAMES), field(4, STAGES), field(5, payload(stream, n)))


def fields(data):
    at, out = 0, {}

    def number():
        nonlocal at
        value, shift = 0, 0
        while True:
            byte = data[at]
            at, value, shift = at + 1, value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 2:
            length = number()
            out[key >> 3], at = data[at : at + length], at + length
        else:
            out[key >> 3] = number()
    return out


class Messages:
    """Messages of a connection, as they come."""

    def __init__(self, sock):
        self.sock, self.held = sock, b""

    def __iter__(self):
        while True:
            at = next((i for i, b in enumerate(self.held[:5]) if b < 0x80), None)
            if at is not None:
                length = sum((b & 0x7F) << 7 * i for i, b in enumerate(self.held[: at + 1]))
                if len(self.held) >= at + 1 + length:
                    body, self.held = self.held[at + 1 : at + 1 + length], self.held[at + 1 + length :]
                    yield fields(body)
                    continue
            data = self.sock.recv(65536)
            if not data:
                return
            self.held += data


# --- processes ---


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Daemon:
    def __init__(self, name, more="", hang=False):
        self.codes, self.http, self.pcm, self.out, self.quic = (free_port() for _ in range(5))
        self.config = f"{FOLDER}/{name}.toml"
        with open(self.config, "w") as f:
            f.write(
                f'[codes]\nlisten = "127.0.0.1:{self.codes}"\n[http]\nlisten = "127.0.0.1:{self.http}"\n'
                f'[[pcm_input]]\nlisten = "127.0.0.1:{self.pcm}"\nstream = "hostile.raw"\n[[pcm_output]]\nlisten = "127.0.0.1:{self.out}"\n'
                f'stream = "good.1"\n[quic]\nlisten = "127.0.0.1:{self.quic}"\n[engine]\nthreads = 1\nslots = 16\n'
                f'[log]\nlevel = "error"\n{more}'
            )
        env = dict(os.environ, UNDERTONE_MODEL=MODEL)
        if hang:
            env.update(LD_PRELOAD=f"{FOLDER}/hang.so", HANG=HANG)
        self.log = open(f"{FOLDER}/{name}.log", "ab")  # noqa: SIM115 (as long as the daemon runs)
        self.process = subprocess.Popen([BINARY, "serve", "--config", self.config], stderr=self.log, env=env)
        self.wait()

    def wait(self):
        start = time.monotonic()
        while self.get("/readyz")[0] not in (200, 503):
            if self.process.poll() is not None or time.monotonic() - start > 120:
                raise SystemExit(f"the daemon does not start: {Path(self.log.name).read_text()[-2000:]}")
            time.sleep(0.05)

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()
        except OSError as e:
            return 0, str(e)

    def metric(self, name):
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(f"undertone_{name} ")]
        return float(lines[0].split()[1]) if lines else float("nan")

    def memory_mib(self):
        with open(f"/proc/{self.process.pid}/status") as f:
            return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmRSS"))

    def cpu_s(self):
        parts = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        self.process.terminate()
        return self.process.wait(30)


class Publisher(threading.Thread):
    """Publishes numbered bundles in real time until told to stop."""

    def __init__(self, port, stream):
        super().__init__(daemon=True)
        self.stream, self.sent, self.times, self.stopping, self.error = stream, 0, [], False, None
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.sendall(hello(1, stream))
        self.start()

    def run(self):
        start = time.monotonic()
        try:
            while not self.stopping:
                self.sock.sendall(bundle(self.stream, self.sent))
                self.sent += 1
                self.times.append(time.monotonic())
                time.sleep(max(0.0, start + self.sent * EVERY - time.monotonic()))
        except OSError as e:
            self.error = e

    def finish(self):
        self.stopping = True
        self.join()
        with contextlib.suppress(OSError):
            self.sock.sendall(message(5, field(1, 2)))
            while self.sock.recv(65536):
                pass
            self.sock.close()


class Listener(threading.Thread):
    """Hears a stream: which bundles came, and when."""

    def __init__(self, port, stream):
        super().__init__(daemon=True)
        self.stream, self.heard, self.times, self.wrong, self.end = stream, [], [], 0, None
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.sendall(hello(2, stream))
        self.start()

    def run(self):
        try:
            for m in Messages(self.sock):
                if 3 in m:
                    b = fields(m[3])
                    n = b.get(2, 0) // FRAMES
                    self.heard.append(n)
                    self.times.append(time.monotonic())
                    self.wrong += b[5] != payload(self.stream, n)
                elif 5 in m:
                    self.end = fields(m[5])
        except OSError as e:
            self.end = e


# --- recordings ---


def crc(data):
    value = 0xFFFF
    for byte in data:
        value ^= byte << 8
        for _ in range(8):
            value = (value << 1 ^ 0x1021 if value & 0x8000 else value << 1) & 0xFFFF
    return struct.pack("<H", value)


def recorded(folder, stream):
    """The payloads of all recordings of a stream; every check sum is looked at, and a cut file ends with a whole record."""
    found, empty = [], 0
    for path in sorted(glob.glob(f"{folder}/{stream}-*.utn")):
        data = Path(path).read_bytes()
        empty += not data
        if len(data) < 31:
            continue
        at = 23 + 8 * (data[4] & 1) + 8 * (data[4] >> 1 & 1)
        frames, stages = data[19], data[18]
        while at < len(data):
            start = at
            tag, at = data[at], at + 1
            if tag == 2:
                frames, stages, at = data[at], data[at + 1], at + 2
                while data[at] >= 0x80:
                    at += 1
                at += 1
            elif tag != 1:
                break
            end = at + (frames * stages * 10 + 7) // 8
            if end + 2 > len(data):
                break
            assert crc(data[start:end]) == data[end : end + 2], f"{path}: check sum at byte {start}"
            found.append(data[at:end])
            at = end + 2
    return found, empty


def numbers(folder, stream, most):
    known = {payload(stream, n): n for n in range(most)}
    found, empty = recorded(folder, stream)
    return [known[p] for p in found], empty


# --- the tortures ---


def kills():
    say(f"== {KILLS} kills of a recording daemon ==")
    folder, worst, worst_start, broken = f"{FOLDER}/kills", 0.0, 0.0, 0
    for n in range(KILLS):
        shutil.rmtree(folder, ignore_errors=True)
        fsync = ["5.0", '"bundle"', '"never"'][n % 3]
        begun = time.monotonic()
        daemon = Daemon("kills", f'[record]\nfolder = "{folder}"\nrotate_mb = 0.001\nfsync = {fsync}\n')
        worst_start = max(worst_start, time.monotonic() - begun)
        listener = Listener(daemon.codes, "good")
        publisher = Publisher(daemon.codes, "good")
        time.sleep(RANDOM.uniform(0.5, 2.5))
        killed = time.monotonic()
        daemon.kill()
        publisher.finish()
        listener.join(5)
        kept = set(numbers(folder, "good", publisher.sent + 10)[0])
        lost = [t for i, t in zip(listener.heard, listener.times) if i not in kept]
        worst = max([worst] + [killed - t for t in lost])
        broken += listener.wrong
    must(worst <= KILL_S, f"of what listeners had heard, recordings lost at most the last {worst:.2f} s (bound {KILL_S} s)")
    must(broken == 0, f"{broken} bundles were other ones than were sent")
    say(f"  a daemon was ready again after at most {worst_start:.1f} s")


def coded_hello():
    """The Hello of our own client when it wants coded bundles, as fields, from half a session with a server that never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        command = [BINARY, "send", "-", "--coded", "--stream", "hostile", "--raw", "s16le:24000:1", "--kbps", "8", "--bundle", "50"]
        env = dict(os.environ, UNDERTONE_MODEL=MODEL)
        client = subprocess.Popen(
            [*command, "--to", f"127.0.0.1:{server.getsockname()[1]}"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env)
        server.settimeout(60)
        with server.accept()[0] as s:
            data = s.recv(4096)
        client.kill()
        client.wait()
    start = next(i for i, byte in enumerate(data) if byte < 0x80) + 1
    return fields(fields(data[start:])[1])


def one_coder(hello_of_client):
    """One address that connects again and again, each time with a bundle that costs much to decode and is wrong."""
    say("== 60 s of one client whose coded bundles are wrong ==")
    daemon = Daemon("coder")
    expensive = message(3, field(3, 50), field(4, 16), field(5, RANDOM.randbytes(900)), field(6, 2))
    before, begun, tries = daemon.cpu_s(), time.monotonic(), 0
    while time.monotonic() - begun < 60:
        # A stream of its own each time, and patience: whoever hangs up is still waited for.
        words = message(1, *(field(k, f"hostile.{tries}".encode() if k == 3 else v) for k, v in hello_of_client.items()))
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", daemon.codes), timeout=20) as s:
            s.sendall(words + expensive)
            while s.recv(4096):
                pass
        tries += 1
    share = 100 * (daemon.cpu_s() - before) / (time.monotonic() - begun)
    # What may be done at once before the address has to wait is a second of work.
    bound = 5 + 100 / 60
    must(share <= bound, f"{tries} connections and bundles cost {share:.1f} % of a core (bound {bound:.1f} %)")
    daemon.stop()


def hostile(daemon, stop, counts):
    """Everything a stranger may think of, from many addresses of this machine."""
    ports = [daemon.codes, daemon.pcm, daemon.out, daemon.http]
    good = hello(1, "hostile")

    def connect(port):
        s = socket.socket()
        s.bind((f"127.0.{RANDOM.randrange(1, 4)}.{RANDOM.randrange(1, 250)}", 0))
        s.settimeout(1)
        s.connect(("127.0.0.1", port))
        return s

    def keep(s):
        kept.append(s)
        if len(kept) > 100:
            kept.pop(0).close()

    def garbage():
        with connect(RANDOM.choice(ports)) as s:
            s.sendall(RANDOM.randbytes(RANDOM.randrange(1, 5000)))

    def flipped():
        data = bytearray(good + b"".join(bundle("hostile", n) for n in range(20)))
        for _ in range(RANDOM.randrange(1, 20)):
            data[RANDOM.randrange(len(data))] ^= 1 << RANDOM.randrange(8)
        with connect(daemon.codes) as s:
            s.sendall(data)
            s.recv(100)

    def coded():
        with connect(daemon.codes) as s:
            s.sendall(good + message(3, field(3, 50), field(4, STAGES), field(5, RANDOM.randbytes(300)), field(6, 2)))
            s.recv(100)

    def far():
        with connect(daemon.codes) as s:
            s.sendall(good + message(3, field(2, 2**64 - 6), field(3, FRAMES), field(4, STAGES), field(5, payload("x", 1))))
            s.recv(100)

    def held():
        # Whoever has addresses enough can hold all of the HTTP port's places for a moment; that is no promise.
        s = connect(RANDOM.choice(ports[:3]))
        s.sendall(good[: RANDOM.randrange(1, len(good))])
        keep(s)

    def deaf():
        s = connect(daemon.codes)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        s.sendall(hello(2, f"good.{RANDOM.randrange(3)}"))
        keep(s)

    def web():
        with connect(daemon.http) as s:
            path = RANDOM.choice(["/", "/ws", "/metrics", "/status", "/" + "a" * RANDOM.randrange(10_000), "/%00"])
            method, host = RANDOM.choice(["GET", "POST", "PUT"]), RANDOM.choice(["localhost", "evil.example"])
            s.sendall(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            s.recv(1000)

    def short_streams():
        with connect(daemon.codes) as s:
            name = f"short.{RANDOM.randrange(10**9)}"
            s.sendall(hello(1, name) + bundle(name, 0))

    def datagrams():
        for _ in range(50):
            udp.sendto(RANDOM.randbytes(RANDOM.randrange(1300)), ("127.0.0.1", daemon.quic))

    kept, udp = [], socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    ways = [garbage, flipped, coded, far, held, deaf, web, short_streams, datagrams]
    while not stop.is_set():
        way = RANDOM.choice(ways)
        with contextlib.suppress(OSError):
            way()
        counts[way.__name__] = counts.get(way.__name__, 0) + 1
        time.sleep(0.004)


def beside():
    say(f"== {MINUTES:g} minutes of hostile clients beside three good streams ==")
    nats_port = free_port()

    def nats(*more):
        command = ["nats-server", "-a", "127.0.0.1", "-p", str(nats_port), "-js", "-sd", f"{FOLDER}/nats", *more]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    server = nats()
    bus = f'[nats]\nurl = "nats://127.0.0.1:{nats_port}"\nreplay_s = 60\nreplay_bytes = 16777216\n'
    record = f'[record]\nfolder = "{DISK}"\nstreams = ["good.*", "short.*"]\nrotate_mb = 0.05\ndisk_mb = 60\nfsync = 1.0\n'
    a, b = Daemon("a", bus + record, hang=True), Daemon("b", bus)
    streams = [f"good.{n}" for n in range(3)]
    here = [Listener(a.codes, s) for s in streams]
    there = [Listener(b.codes, s) for s in streams]
    time.sleep(1)
    publishers = [Publisher(a.codes, s) for s in streams]
    time.sleep(3)
    base = a.memory_mib()
    stop, counts = threading.Event(), {}
    crowd = [threading.Thread(target=hostile, args=(a, stop, counts), daemon=True) for _ in range(4)]
    for t in crowd:
        t.start()
    end = time.monotonic() + MINUTES * 60
    part = MINUTES * 60 / 10
    most = base

    def watch(seconds):
        nonlocal most
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            most = max(most, a.memory_mib())
            time.sleep(min(1.0, max(0.01, until - time.monotonic())))

    def ready_again(within):
        begun = time.monotonic()
        while time.monotonic() - begun < within and a.get("/readyz")[0] != 200:
            watch(0.2)
        return time.monotonic() - begun

    watch(part)
    # The disk is full: another program took all of it.
    with contextlib.suppress(OSError), open(f"{DISK}/filler", "wb", buffering=0) as f:
        while True:
            f.write(bytes(4096))
    full_at = time.monotonic()
    watch(part)
    state = a.get("/readyz")
    must(state[0] == 503 and "recording" in state[1], f"full disk: /readyz says {state[0]} {state[1].strip()!r}")
    empty = [p for p in glob.glob(f"{DISK}/*.utn") if os.path.getsize(p) == 0 and time.time() - os.path.getmtime(p) > 5]
    must(not empty, f"full disk: {len(empty)} empty files were left")
    os.remove(f"{DISK}/filler")
    full_s = time.monotonic() - full_at
    took = ready_again(60)
    must(took < 60, f"full disk for {full_s:.0f} s: ready again {took:.1f} s after there was room")
    watch(part)
    # The disk hangs for less than the queue holds, and then for longer.
    hangs = []
    for seconds in (15, min(40, 2 * part)):
        lost_before = a.metric("recorded_lost_bundles_total")
        open(HANG, "w").close()
        hung_at = time.monotonic()
        watch(seconds)
        os.remove(HANG)
        hangs.append((hung_at, time.monotonic()))
        watch(5)
        say(f"  disk hung for {seconds:.0f} s: {a.metric('recorded_lost_bundles_total') - lost_before:.0f} bundles were dropped")
    watch(part)
    # NATS dies, with and without its store.
    outages = []
    for n in range(6):
        server.kill()
        server.wait()
        down = time.monotonic()
        if n % 2:
            shutil.rmtree(f"{FOLDER}/nats", ignore_errors=True)
        watch(2)
        server = nats()
        watch(max(8, part / 3))
        outages.append((down, time.monotonic()))
    watch(max(0, end - time.monotonic()))
    stop.set()
    for t in crowd:
        t.join(5)
    cpu = a.cpu_s()
    for p in publishers:
        p.finish()
    for listener in here + there:
        listener.join(10)
    say(f"  hostile: {sum(counts.values())} attempts ({', '.join(f'{k} {v}' for k, v in sorted(counts.items()))})")
    must(a.process.poll() is None and b.process.poll() is None, "both daemons still run")
    must(most - base < 200, f"memory grew by at most {most - base:.0f} MiB")
    say(f"  the daemon used {cpu:.0f} s of processor time")
    say(f"  {a.metric('stale_bundles_total'):.0f} bundles came later than limits.max_lag_ms allows and were left out")
    for p, near, far in zip(publishers, here, there):
        missing = sorted(set(range(p.sent)) - set(near.heard))
        must(not missing and near.wrong == 0, f"{p.stream}: {p.sent} bundles sent, {len(missing)} lost to a listener here")
        late = max(t - p.times[n] for n, t in zip(near.heard, near.times))
        say(f"    at most {late:.2f} s after they were sent")
        gone = sorted(set(range(p.sent)) - set(far.heard))
        outside = [n for n in gone if not any(down - 1 <= p.times[n] <= up for down, up in outages)]
        must(not outside, f"{p.stream}: {len(gone)} lost to a listener behind NATS, {len(outside)} of them while it ran")
    must(a.stop() == 0 and b.stop() == 0, "both end when asked to")
    # The oldest recordings make room: what is looked at is what came after the oldest that is left.
    for p in publishers:
        kept, _ = numbers(DISK, p.stream, p.sent)
        kept_set = set(kept)
        gone = [n for n in range(min(kept, default=0), p.sent) if n not in kept_set]
        must(len(kept) == len(kept_set), f"{p.stream}: no bundle was recorded twice")
        say(f"    the last {len(kept) * EVERY:.0f} s are on the disk; {len(gone)} bundles are missing among them")
        bound = [(full_at - 1, full_at + full_s + PAUSE_S + 1)] + [(h, u + 1) for h, u in hangs if u - h > QUEUE * EVERY * 0.9]
        outside = [n for n in gone if not any(h <= p.times[n] <= u for h, u in bound)]
        must(not outside, f"{p.stream}: {len(outside)} of them while the disk worked, or hung for less than the queue holds")
    server.kill()
    server.wait()


def main():
    say(f"{subprocess.check_output([BINARY, '--version'], text=True).strip()}, {os.cpu_count()} cores")
    for part in PARTS:
        {"kills": kills, "coder": lambda: one_coder(coded_hello()), "beside": beside}[part]()
    say(f"== {'all as promised' if not faults else f'{len(faults)} promises broken'} ==")
    sys.exit(bool(faults))


main()
