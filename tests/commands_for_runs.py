"""Management commands that are not ours, for `run_job`: each does one thing only."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection

from starview_app.maintenance.running import process


class Print(BaseCommand):
    """Writes what its arguments say."""

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("words", nargs="*")

    def handle(self, *, words: list[str], **options: Any) -> None:
        self.stdout.write(" ".join(words) or "printed")
        self.stderr.write("to the other stream")


class Wait(BaseCommand):
    """Waits in its own code until it is ended."""

    def handle(self, **options: Any) -> None:
        self.stdout.write("waiting")
        self.stdout.flush()
        threading.Event().wait()


class WaitInQuery(BaseCommand):
    """Waits inside libpq, where no Python signal handler runs."""

    def handle(self, **options: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(300)")


class Stubborn(BaseCommand):
    """Does not hear any signal."""

    def handle(self, **options: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        self.stdout.write("waiting")
        self.stdout.flush()
        while True:
            signal.pause()


class Fail(BaseCommand):
    """Fails as an operator can mend."""

    def handle(self, **options: Any) -> None:
        raise CommandError("the bucket is full HINT: empty it")


class Bug(BaseCommand):
    """Fails as only a developer can mend."""

    def handle(self, **options: Any) -> None:
        raise ValueError("a bug")


class Flood(BaseCommand):
    """Writes a megabyte."""

    def handle(self, **options: Any) -> None:
        for number in range(10_000):
            self.stdout.write(f"{number:05} {'x' * 93}")
        self.stdout.write("a NUL \x00 and no text \udcff at the end")


class Nested(BaseCommand):
    """Runs another job's command as a process of its own."""

    def handle(self, **options: Any) -> None:
        names = [name for name in os.environ if name == "JOB" or "STARVIEW_JOB" in name]
        self.stdout.write(f"inherited: {names}")
        done = subprocess.run(
            [sys.executable, "manage.py", "run_job", "clearsessions"], check=False
        )
        self.stdout.write(f"its exit code: {done.returncode}")


class CloseConnection(BaseCommand):
    """Closes Django's connection, which opens another: its own business."""

    def handle(self, **options: Any) -> None:
        connection.close()
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
        self.stdout.write("connected anew")


class Garble(BaseCommand):
    """Writes what is no report of a run, and a last line that only looks like one."""

    def handle(self, **options: Any) -> None:
        report = process._report_fd
        assert report
        nested = "[" * 100_000
        for line in (nested, "5", "[]", '{"counts": {"a": "b"}, "error": 7}', "\udcff"):
            os.write(report, os.fsencode(f"{line}\n"))
        os.write(report, b'{"counts": {"deleted": ')  # a write that was cut short
        process.report(counts={"deleted": 3})
        self.stdout.write(nested)
        self.stdout.write("x" * (200 * 1024))
        self.stdout.write('{"line": ' + nested[:20_000])
        raise SystemExit(3)


class TryAgainLater(BaseCommand):
    """Ends with EX_TEMPFAIL, for reasons of its own."""

    def handle(self, **options: Any) -> None:
        raise CommandError("try again later", returncode=75)


class EndItsChild(BaseCommand):
    """Forks, and ends its child by a signal, at once: before it has done anything."""

    def handle(self, **options: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            pid = os.fork()
            if not pid:
                while True:
                    signal.pause()
            os.kill(pid, number)
            _, status = os.waitpid(pid, 0)
            self.stdout.write(f"{number.name}: {os.waitstatus_to_exitcode(status)}")


class LeavePoolOpen(BaseCommand):
    """Starts processes that wait for work, and leaves them so."""

    pool: Any = None
    executor: Any = None

    def handle(self, **options: Any) -> None:
        fork = multiprocessing.get_context("fork")
        type(self).pool = fork.Pool(2)
        type(self).executor = ProcessPoolExecutor(2, fork)
        squares = self.pool.map(abs, range(-3, 0))
        self.stdout.write(f"{squares} {self.executor.submit(abs, -4).result()}")


class LeaveInChild(BaseCommand):
    """Its child leaves by an exception, through all that the runner has set up."""

    def handle(self, **options: Any) -> None:
        pid = os.fork()
        if not pid:
            raise SystemExit(3)
        _, status = os.waitpid(pid, 0)
        self.stdout.write(f"its child: {os.waitstatus_to_exitcode(status)}")
        self.stdout.flush()
        threading.Event().wait()


class LeaveChildBehind(BaseCommand):
    """Is killed, and leaves a child that goes on."""

    def handle(self, **options: Any) -> None:
        pid = os.fork()
        if not pid:
            os.close(1)
            os.close(2)
            while True:
                signal.pause()
        self.stdout.write(f"child {pid}")
        self.stdout.flush()
        os.kill(os.getpid(), signal.SIGKILL)


class OwnHandler(BaseCommand):
    """Ends in its own way when it is told to stop."""

    def handle(self, **options: Any) -> None:
        told = threading.Event()
        signal.signal(signal.SIGTERM, lambda number, frame: told.set())
        self.stdout.write("waiting")
        self.stdout.flush()
        while not told.wait(0.01):
            pass
        self.stdout.write("ended in its own way")
