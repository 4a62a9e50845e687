#!/usr/bin/env python3
"""Drains the router before Azure stops, moves or deletes this VM (scheduled events).

Azure announces such an event and waits: for as long as the scale set's termination notification
says, or 15 minutes before a reboot. In that time the router answers the load balancer's probe with
503, so that new connections go to others, and waits for its sessions. When none is left, or the
time is over, the event is told to begin. An event that Azure takes back ends the drain.
"""

import email.utils
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request

METADATA = os.environ.get("METADATA", "http://169.254.169.254") + "/metadata"
EVENTS = METADATA + "/scheduledevents?api-version=2020-07-01"
NAME = METADATA + "/instance/compute/name?api-version=2021-02-01&format=text"
# A freeze lasts seconds and loses no session; these end the VM, or its memory.
ENDING = {"Reboot", "Redeploy", "Preempt", "Terminate"}
PERIOD = float(os.environ.get("PERIOD", "5"))
# Azure acts at NotBefore, asked or not: the answer has to arrive before it.
MARGIN = 15


def say(text):
    print(text, file=sys.stderr, flush=True)


def ask(url, data=None):
    """Returns the answer of the metadata service, which must never be asked through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, data=data, headers={"Metadata": "true"})
    # The first question switches scheduled events on for this VM, which takes up to two minutes.
    with opener.open(request, timeout=130) as answer:
        return answer.read().decode()


def mine(events, name):
    """Returns the announced events that end this VM, by their id."""
    return {
        event["EventId"]: event
        for event in events.get("Events", [])
        if event.get("EventType") in ENDING
        and name in event.get("Resources", [])
        and event.get("EventStatus") == "Scheduled"
    }


def seconds_left(event, now):
    """Returns how long to wait for sessions before the event."""
    longest = int(os.environ.get("DRAIN_SECONDS", "570"))
    try:
        begin = email.utils.parsedate_to_datetime(event.get("NotBefore") or "").timestamp()
    except (TypeError, ValueError):
        return longest
    return max(0, min(longest, int(begin - now - MARGIN)))


def router(*arguments):
    try:
        return subprocess.run(["pls-router", *arguments], check=False).returncode == 0
    except OSError as error:
        say(f"cannot run pls-router: {error}")
        return False


class Watch:
    """What is drained for, and what has been told to begin."""

    def __init__(self, name):
        self.name = name
        self.waiter = None
        self.waiting = set()
        self.begun = set()

    def look(self):
        """Looks at the announced events once, and does what they ask for."""
        events = json.loads(ask(EVENTS))
        listed = {event["EventId"] for event in events.get("Events", [])}
        for identity, event in mine(events, self.name).items():
            if identity not in self.waiting and identity not in self.begun:
                self.drain(event)
        # This VM still runs, so these were taken back, or have passed without ending it.
        over = (self.waiting | self.begun) - listed
        self.waiting -= over
        self.begun -= over
        if over and not self.waiting and not self.begun:
            say(f"over or taken back: {', '.join(sorted(over))}; in service again")
            self.stop_waiting()
            router("undrain")
        if self.waiter is None or self.waiter.poll() is not None:
            for identity in sorted(self.waiting):
                self.begin(identity)

    def drain(self, event):
        wait = seconds_left(event, time.time())
        say(f"{event['EventType']} of this VM is announced ({event['EventId']}): draining for {wait} s")
        self.waiting.add(event["EventId"])
        self.stop_waiting()
        try:
            self.waiter = subprocess.Popen(["pls-router", "drain", "--wait", f"{wait}s"])
        except OSError as error:
            say(f"cannot drain: {error}")

    def stop_waiting(self):
        if self.waiter is not None and self.waiter.poll() is None:
            self.waiter.terminate()
            self.waiter.wait()
        self.waiter = None

    def begin(self, identity):
        say(f"event {identity} may begin")
        ask(EVENTS, json.dumps({"StartRequests": [{"EventId": identity}]}).encode())
        self.waiting.discard(identity)
        self.begun.add(identity)


def main():
    watch = None
    silent = False
    while True:
        try:
            watch = watch or Watch(ask(NAME).strip())
            watch.look()
            silent = False
        except (OSError, ValueError, KeyError, urllib.error.URLError) as error:
            if not silent:
                say(f"no answer of the metadata service that is understood: {error}; trying again")
            silent = True
        time.sleep(PERIOD)


if __name__ == "__main__":
    main()
