"""Every exported function on the device against the CPU: pytest, summed up."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from .record import ROOT, Job, table

FILES = ("test_cuda", "test_devices")


def run(job: Job) -> None:
    found = {
        name: job.part(name, lambda name=name: _pytest(job, name)) for name in FILES
    }
    names = ("passed", "failed", "skipped")
    rows = [
        [f"tests/flowbook/{name}.py", *(part[n] for n in names)]
        for name, part in found.items()
    ]
    failures = [line for part in found.values() for line in part["failures"]]
    note = "Failed: " + "; ".join(failures) if failures else ""
    settings = {"compared with": "the CPU, in float64, one sample at a time"}
    job.finish(settings, [table("Tests", ["file", *names], rows, note)], [])
    if failures:
        sys.exit(note)


def _pytest(job: Job, name: str) -> dict:
    """Run one file's tests for the device; count by outcome, and name what failed."""
    report = job.folder / f"{name}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    which = job.size(job.device, f"{job.device} and not compile")
    few = f"{which} and (conversions or cuda) and not velocity"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        f"tests/flowbook/{name}.py",
        "-W",
        "default",
    ]
    command += ["-p", "no:cacheprovider", "-k", job.size(which, few)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command.append(f"--junitxml={report}")
    done = subprocess.run(command, cwd=ROOT, env=environment)
    if not report.exists():
        sys.exit(f"pytest left no report: exit status {done.returncode}")
    return summary(report.read_text())


def summary(xml: str) -> dict:
    """The outcomes in a JUnit report, and the names of the tests that failed."""
    counts, failures = {"passed": 0, "failed": 0, "skipped": 0}, []
    for case in ElementTree.fromstring(xml).iter("testcase"):
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            counts["failed"] += 1
            failures.append(case.get("name"))
        else:
            counts["skipped" if "skipped" in kinds else "passed"] += 1
    if not sum(counts.values()):
        failures.append("no test ran")
    return {**counts, "failures": failures}
