"""The scripts that run on the VM, with a metadata service, a package and a router that are made up.
All of it is on this machine's loopback."""

import email.utils
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

from tree import SOURCE, Skip, ensure

FILES = os.path.join(SOURCE, "modules", "cloud-init", "files")
PACKAGE = b"a package"
# The time until something has to happen. It happens at once, so this is for machines that are busy.
LONG = 30


class Cloud:
    """The metadata service and the storage account."""

    def __init__(self):
        self.events = []
        self.started = []
        self.requests = []
        self.package = PACKAGE
        self.token_needed = False
        cloud = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self, code, body):
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                cloud.requests.append((self.path, dict(self.headers)))
                url = urllib.parse.urlparse(self.path)
                if url.path.startswith("/metadata") and self.headers.get("Metadata") != "true":
                    self.answer(400, b"no Metadata header")
                elif url.path == "/metadata/scheduledevents":
                    events = {"DocumentIncarnation": 1, "Events": cloud.events}
                    self.answer(200, json.dumps(events).encode())
                elif url.path == "/metadata/instance/compute/name":
                    self.answer(200, b"router_1")
                elif url.path == "/metadata/identity/oauth2/token":
                    self.answer(200, b'{"access_token": "secret", "token_type": "Bearer"}')
                elif url.path == "/package.deb":
                    allowed = self.headers.get("Authorization") == "Bearer secret"
                    if cloud.token_needed and not (allowed and self.headers.get("x-ms-version")):
                        self.answer(403, b"")
                    else:
                        self.answer(200, cloud.package)
                else:
                    self.answer(404, b"")

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                cloud.started += [one["EventId"] for one in body["StartRequests"]]
                self.answer(200, b"")

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def event(self, kind, resource="router_1", begin=None):
        event = {
            "EventId": f"{kind}-{resource}",
            "EventType": kind,
            "Resources": [resource],
            "EventStatus": "Scheduled",
            "NotBefore": email.utils.formatdate(begin, usegmt=True) if begin else "",
        }
        self.events.append(event)
        return event


class Machine:
    """A directory with programs that only note how they were called."""

    def __init__(self, folder, programs=("pls-router", "systemctl", "dpkg")):
        self.folder = folder
        self.calls_file = os.path.join(folder, "calls")
        self.bin = os.path.join(folder, "bin")
        os.makedirs(self.bin)
        for name in programs:
            path = os.path.join(self.bin, name)
            with open(path, "w", encoding="utf-8") as file:
                file.write(f'#!/bin/sh\necho "{name} $*" >>"{self.calls_file}"\n')
                if name == "pls-router":
                    # A drain lasts until the test says that the sessions are gone.
                    file.write(
                        f'[ "$1" = drain ] || exit 0\n'
                        f'while [ ! -e "{folder}/no-sessions" ]; do sleep 0.02; done\n'
                    )
            os.chmod(path, 0o755)

    def environment(self, **more):
        path = f"{self.bin}:/usr/bin:/bin"
        return {"PATH": path, "STATE_DIRECTORY": os.path.join(self.folder, "state"), **more}

    def calls(self):
        try:
            with open(self.calls_file, encoding="utf-8") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def sessions_end(self):
        open(os.path.join(self.folder, "no-sessions"), "w", encoding="utf-8").close()


def install(machine, cloud, **settings):
    if shutil.which("curl") is None:
        raise Skip("there is no curl")
    environment = machine.environment(
        METADATA=cloud.url,
        PACKAGE_URL=f"{cloud.url}/package.deb",
        PACKAGE_SHA256=hashlib.sha256(PACKAGE).hexdigest(),
        PACKAGE_IDENTITY_ID="",
    )
    environment.update(settings)
    return subprocess.run(
        ["sh", os.path.join(FILES, "install.sh")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=LONG,
    )


def on_a_machine(check, **options):
    def run(_):
        with tempfile.TemporaryDirectory() as folder:
            check(Machine(folder, **options), Cloud())

    return run


def installs_once(machine, cloud):
    first = install(machine, cloud)
    ensure(first.returncode == 0, first.stdout)
    calls = machine.calls()
    ensure("--force-confold" in calls[0] and calls[0].startswith("dpkg "), f"{calls}")
    ensure(calls[1:] == ["systemctl enable pls-router.service", "systemctl start pls-router.service"], f"{calls}")
    requests = len(cloud.requests)
    second = install(machine, cloud)
    ensure(second.returncode == 0 and len(cloud.requests) == requests, "was fetched at the next boot again")
    ensure(machine.calls()[-1] == "systemctl start pls-router.service", f"{machine.calls()}")


def refuses_another_package(machine, cloud):
    cloud.package = b"another package"
    done = install(machine, cloud)
    ensure(done.returncode != 0 and "is not the package that was asked for" in done.stdout, done.stdout)
    ensure(machine.calls() == [], f"{machine.calls()}")


def says_why_there_is_no_package(machine, cloud):
    done = install(machine, cloud, PACKAGE_URL=f"{cloud.url}/nothing")
    ensure(done.returncode != 0 and "see the firewall's log" in done.stdout, done.stdout)
    ensure(machine.calls() == [], f"{machine.calls()}")


def shows_its_identity(machine, cloud):
    cloud.token_needed = True
    without = install(machine, cloud)
    ensure(without.returncode != 0, "a package that needs a token was had without one")
    done = install(machine, cloud, PACKAGE_IDENTITY_ID="/subscriptions/s/identities/i")
    ensure(done.returncode == 0, done.stdout)
    asked = [path for path, _ in cloud.requests if "oauth2" in path]
    query = urllib.parse.parse_qs(urllib.parse.urlparse(asked[0]).query)
    ensure(query["msi_res_id"] == ["/subscriptions/s/identities/i"], f"{query}")
    ensure(query["resource"] == ["https://storage.azure.com/"], f"{query}")
    ensure("secret" not in done.stdout, "the token is in the log")


def needs_a_router(machine, cloud):
    done = install(machine, cloud, PACKAGE_URL="", PACKAGE_SHA256="")
    ensure(done.returncode != 0 and "there is no pls-router" in done.stdout, done.stdout)


class Watcher:
    """events.py, running."""

    def __init__(self, machine, cloud):
        self.machine = machine
        self.process = subprocess.Popen(
            [sys.executable, os.path.join(FILES, "events.py")],
            env=machine.environment(METADATA=cloud.url, PERIOD="0.02", DRAIN_SECONDS="570"),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        # Also the end of a drain that it has started: systemd ends all of a service's processes.
        self.machine.sessions_end()
        self.process.communicate(timeout=LONG)

    def await_that(self, condition, text):
        end = time.monotonic() + LONG
        while not condition():
            ensure(time.monotonic() < end and self.process.poll() is None, f"not within {LONG} s: {text}")
            time.sleep(0.02)


def watched(check):
    def run(machine, cloud):
        with Watcher(machine, cloud) as watcher:
            check(machine, cloud, watcher)

    return on_a_machine(run)


def looks(cloud):
    return sum("scheduledevents" in path for path, _ in cloud.requests)


def drains_before_its_end(machine, cloud, watcher):
    cloud.event("Terminate", begin=time.time() + 600)
    watcher.await_that(machine.calls, "a drain")
    (call,) = machine.calls()
    wait = int(call.removeprefix("pls-router drain --wait ").removesuffix("s"))
    ensure(540 < wait <= 570, f"waits for {wait} s")
    before = looks(cloud)
    watcher.await_that(lambda: looks(cloud) > before + 2, "further looks")
    ensure(cloud.started == [], "the event was begun while there were sessions")
    machine.sessions_end()
    watcher.await_that(lambda: cloud.started, "the event's begin")
    ensure(cloud.started == ["Terminate-router_1"], f"{cloud.started}")


def leaves_time_to_answer(machine, cloud, watcher):
    cloud.event("Reboot", begin=time.time() + 100)
    watcher.await_that(machine.calls, "a drain")
    wait = int(machine.calls()[0].removeprefix("pls-router drain --wait ").removesuffix("s"))
    ensure(60 < wait <= 86, f"waits for {wait} s, and Azure for 100")


def leaves_others_alone(machine, cloud, watcher):
    cloud.event("Terminate", resource="router_2")
    cloud.event("Freeze")
    before = looks(cloud)
    watcher.await_that(lambda: looks(cloud) > before + 3, "some looks")
    ensure(machine.calls() == [] and cloud.started == [], f"{machine.calls()} {cloud.started}")


def goes_on_if_taken_back(machine, cloud, watcher):
    cloud.event("Redeploy")
    watcher.await_that(machine.calls, "a drain")
    cloud.events.clear()
    watcher.await_that(lambda: machine.calls()[-1] == "pls-router undrain", "the end of the drain")
    ensure(cloud.started == [], f"{cloud.started}")


def goes_on_if_it_passes(machine, cloud, watcher):
    machine.sessions_end()
    event = cloud.event("Reboot")
    watcher.await_that(lambda: cloud.started, "the event's begin")
    event["EventStatus"] = "Started"
    before = looks(cloud)
    watcher.await_that(lambda: looks(cloud) > before + 2, "further looks")
    ensure("pls-router undrain" not in machine.calls(), "is in service while it is about to end")
    cloud.events.clear()
    watcher.await_that(lambda: machine.calls()[-1] == "pls-router undrain", "the end of the drain")


CHECKS = [
    ("install: once, with the configuration kept", on_a_machine(installs_once)),
    ("install: another package is refused", on_a_machine(refuses_another_package)),
    ("install: no package, and why", on_a_machine(says_why_there_is_no_package)),
    ("install: by a managed identity", on_a_machine(shows_its_identity)),
    ("install: an image without a router", on_a_machine(needs_a_router, programs=("systemctl", "dpkg"))),
    ("events: drains, and begins when sessions are gone", watched(drains_before_its_end)),
    ("events: leaves time to answer", watched(leaves_time_to_answer)),
    ("events: freezes and other machines' events", watched(leaves_others_alone)),
    ("events: taken back", watched(goes_on_if_taken_back)),
    ("events: passed", watched(goes_on_if_it_passes)),
]
