"""Change one formula at a time and demand that its tests notice.

`python -m tests.mutants [module ...]` takes each exported module that has a file
`tests/flowbook/test_<module>.py`, changes one place of one function (a sign, a factor,
the order of two arguments, a constant, one schedule for another), puts the changed code
into the running function, and runs the tests that call it. A mutant that every test
passes has survived, and the command fails. Mutants that are proved to compute the same
are listed, with the proof, in `tests/equivalent.toml`.
"""

import argparse
import ast
import copy
import functools
import importlib
import inspect
import itertools
import multiprocessing
import signal
import sys
import threading
import time
import tomllib
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest
import torch

from press import ROOT, WORKERS

# A mutant that loops for ever counts as dead. Its time is the CPU's, which a busy
# machine does not stretch: a test may take TIMES what it took without a change.
TIMES, FLOOR = 10, 5.0  # FLOOR: CPU seconds that even the smallest test is given
# One that waits for ever uses no CPU: less than IDLE seconds of it in PATIENCE seconds
# on the wall. That says nothing of the formula, so it is an error and no death. With
# ten busy processes beside it on a single core, what computes gets some 50 s of 600.
PATIENCE, IDLE = 600.0, 1.0
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
TWINS = [
    ("alpha", "sigma"),
    ("dalpha", "dsigma"),
    ("sin", "cos"),
    ("exp", "expm1"),
    ("log", "log1p"),
    ("sum", "mean"),
    ("t0", "t1"),
    ("x0", "x1"),
]
OTHER = {**dict(TWINS), **{b: a for a, b in TWINS}}
SYMMETRIC = {"max", "min", "maximum", "minimum", "hypot", "logaddexp", "isinstance"}
SYMMETRIC |= {"transpose"}  # of two dimensions


@dataclass(frozen=True)
class Mutant:
    """One change: where it is, how it reads, and the module's tree with it applied."""

    module: str
    function: str  # qualified name; "" for a constant of the module
    change: str
    tree: ast.Module


# --- the changes -----------------------------------------------------------------


def changes(node: ast.expr) -> Iterator[ast.expr]:
    """Yield every expression that a slip could put in the place of `node`."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield operand
        case ast.BinOp(left=a, op=ast.Add(), right=b):
            yield ast.BinOp(a, ast.Sub(), b)
        case ast.BinOp(left=a, op=ast.Sub(), right=b):
            yield ast.BinOp(a, ast.Add(), b)
            yield ast.BinOp(b, ast.Sub(), a)
        case ast.BinOp(left=a, op=ast.Mult() | ast.MatMult(), right=b):
            yield from (a, b)
        case ast.BinOp(left=a, op=ast.Div(), right=b):
            yield a
            yield ast.BinOp(a, ast.Mult(), b)
        case ast.BinOp(left=a, op=ast.Pow()):
            yield a
        case ast.Call(func=f, args=[a, b, *rest], keywords=k) if _order_tells(f, a, b):
            yield ast.Call(f, [b, a, *rest], k)
    match node:
        case ast.Attribute(value=v, attr=name, ctx=ast.Load()) if name in OTHER:
            yield ast.Attribute(v, OTHER[name], ast.Load())
        case ast.Name(id=name, ctx=ast.Load()) if name in OTHER:
            yield ast.Name(OTHER[name], ast.Load())
        case ast.Constant(value=float(c)):
            yield ast.Constant(c * 1.125 + 0.0625 * (c == 0))
        case ast.BinOp(left=a, op=op, right=b):
            if isinstance(a, ast.Constant) and type(a.value) is int:
                yield ast.BinOp(ast.Constant(a.value + 1), op, b)
            if isinstance(b, ast.Constant) and type(b.value) is int:
                yield ast.BinOp(a, op, ast.Constant(b.value + 1))


def _order_tells(function: ast.expr, a: ast.expr, b: ast.expr) -> bool:
    return _name(function) not in SYMMETRIC and ast.dump(a) != ast.dump(b)


def formulas(node: ast.AST) -> Iterator[ast.expr]:
    """Walk the expressions of a function body that compute, not those that refuse."""
    if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.arguments)):
        return
    if isinstance(node, ast.AnnAssign):
        yield from formulas(node.value) if node.value else ()
        return
    if isinstance(node, ast.If) and all(isinstance(s, ast.Raise) for s in node.body):
        yield from itertools.chain.from_iterable(map(formulas, node.orelse))
        return  # a validation: bad-input tests are about these
    if isinstance(node, ast.Call) and _name(node.func).startswith("require_"):
        return
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        yield from itertools.chain.from_iterable(map(formulas, node.body))
        return
    if isinstance(node, ast.expr):
        yield node
    yield from itertools.chain.from_iterable(map(formulas, ast.iter_child_nodes(node)))


def _name(func: ast.expr) -> str:
    return getattr(func, "id", getattr(func, "attr", ""))


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the functions and methods of a module with their qualified names."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield f"{node.name}.{inner.name}", inner


def constants(tree: ast.Module) -> Iterator[ast.Assign]:
    """Yield the module's tables of numbers: a Butcher tableau, say."""
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and not any(isinstance(n, ast.Call) for n in ast.walk(node.value))
            and any(
                isinstance(n, ast.Constant) and type(n.value) in (int, float)
                for n in ast.walk(node.value)
            )
        ):
            yield node


def mutants(module: str, source: str) -> Iterator[Mutant]:
    """Yield every mutant of a module, each with a tree of its own."""
    tree = ast.parse(source)
    places = [(name, n) for name, f in functions(tree) for n in formulas(f)]
    places += [("", n) for table in constants(tree) for n in formulas(table.value)]
    for function, node in places:
        for new in changes(node):
            change = f"{ast.unparse(node)} -> {ast.unparse(new)}"
            swapped = _Swap(node, copy.deepcopy(new)).visit(_copy_around(tree, node))
            yield Mutant(module, function, change, ast.fix_missing_locations(swapped))


def _copy_around(tree: ast.Module, node: ast.expr) -> ast.Module:
    """Copy a tree, but keep `node` itself, so that it can be found again."""
    return copy.deepcopy(tree, {id(node): node})


class _Swap(ast.NodeTransformer):
    def __init__(self, old: ast.expr, new: ast.expr):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return self.new if node is self.old else self.generic_visit(node)


# --- putting a mutant in place ---------------------------------------------------


def code_named(code: CodeType, qualified: str) -> CodeType:
    """Find a function's code inside its module's."""
    for part in qualified.split("."):
        code = next(
            c for c in code.co_consts if isinstance(c, CodeType) and c.co_name == part
        )
    return code


def function_named(module: ModuleType, qualified: str) -> FunctionType:
    """Find the plain function behind properties, class methods and decorators."""
    owner, _, name = qualified.rpartition(".")
    found = vars(getattr(module, owner) if owner else module)[name]
    if isinstance(found, property):
        found = found.fget
    elif isinstance(found, functools.cached_property):
        found = found.func
    elif isinstance(found, (staticmethod, classmethod)):
        found = found.__func__
    return inspect.unwrap(found)


@contextmanager
def in_place(module: ModuleType, mutant: Mutant):
    """Run the block with the mutant's code where every importer will call it."""
    code = compile(mutant.tree, module.__file__, "exec")
    if mutant.function:
        function = function_named(module, mutant.function)
        original = function.__code__
        function.__code__ = code_named(code, mutant.function)
        try:
            yield
        finally:
            function.__code__ = original
    else:
        names = [t.id for a in constants(mutant.tree) for t in a.targets]
        namespace = dict(vars(module))
        for table in constants(mutant.tree):
            exec(compile(ast.Module([table], []), "<mutant>", "exec"), namespace)
        originals = {name: getattr(module, name) for name in names}
        for name in names:
            setattr(module, name, namespace[name])
        try:
            yield
        finally:
            for name, value in originals.items():
                setattr(module, name, value)


# --- the tests ---------------------------------------------------------------------


def calls(test: FunctionType) -> Iterator[Callable[[], None]]:
    """Yield a test once for each row of its `parametrize` marks."""
    marks = getattr(test, "pytestmark", [])
    if any(mark.name == "slow" for mark in marks):
        return
    rows = []
    for mark in marks:
        if mark.name == "parametrize":
            names = mark.args[0]
            if isinstance(names, str):
                names = [n.strip() for n in names.split(",")]
            rows.append([_row(names, v) for v in mark.args[1]])
    for combination in itertools.product(*rows):
        arguments = functools.reduce(dict.__or__, combination, {})
        missing = set(inspect.signature(test).parameters) - set(arguments)
        if missing:
            raise TypeError(f"{test.__name__}: a formula's tests take no fixtures")
        yield functools.partial(test, **arguments)


def _row(names: list[str], value: object) -> dict[str, object]:
    """The arguments that one entry of a `parametrize` mark stands for."""
    if hasattr(value, "marks"):  # pytest.param
        return dict(zip(names, value.values, strict=True))
    return dict(zip(names, value if len(names) > 1 else [value], strict=True))


def functions_called(run: Callable[[], None], file: str) -> set[str]:
    """Run a test and tell which functions of `file` it called."""
    seen = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename == file:
            seen.add(frame.f_code.co_qualname.partition(".<locals>")[0])

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return seen


class TooLong(BaseException):
    """No Exception, so that no test takes it for one that it expects."""


class Waits(BaseException):
    """The test neither computes nor ends."""


@contextmanager
def at_most(seconds: float):
    """Raise TooLong in the block after `seconds` of CPU time, Waits if it uses none."""
    spent = time.process_time()

    def too_long(*_):
        raise TooLong

    def look(*_):
        nonlocal spent
        before, spent = spent, time.process_time()
        if spent - before < IDLE:
            raise Waits

    timers = (signal.ITIMER_PROF, seconds), (signal.ITIMER_REAL, PATIENCE)
    handlers = (signal.SIGPROF, too_long), (signal.SIGALRM, look)
    before = [signal.signal(number, handler) for number, handler in handlers]
    try:
        for timer, interval in timers:
            signal.setitimer(timer, interval, interval)
        yield
    finally:
        for timer, _ in timers:
            signal.setitimer(timer, 0)
        for (number, _), handler in zip(handlers, before, strict=True):
            signal.signal(number, handler)


def failure(test: Callable[[], None]) -> str:
    """Tell why a test fails; nothing if it passes."""
    try:
        test()
    except (Exception, SystemExit, pytest.fail.Exception):
        # a command ends by the second; where pytest.raises saw nothing, by the third
        return traceback.format_exc()
    return ""


def killer(limits: dict[Callable[[], None], float]) -> str:
    """Name the first test that fails, each within its limit of CPU seconds, and why.

    Nothing if all pass. Raises RuntimeError for a test that waits and does not compute.
    """
    for test, seconds in limits.items():
        try:
            with at_most(seconds):
                why = failure(test)
        except TooLong:
            why = f"more than {seconds:.1f} s of CPU"
        except Waits:
            raise RuntimeError(
                f"{test} waits: {PATIENCE} s without computing"
            ) from None
        if why:
            return f"{test}: {why}"
    return ""


# --- the command ---------------------------------------------------------------------


def examine(
    module_name: str, tests_name: str, equivalent: dict[tuple, str]
) -> tuple[int, list[Mutant], set[tuple]]:
    """Count a module's dead mutants, list the survivors, name the excused ones."""
    module = importlib.import_module(module_name)
    tests_module = importlib.import_module(tests_name)
    tests = [
        run
        for name, test in vars(tests_module).items()
        if name.startswith("test_") and inspect.isfunction(test)
        for run in calls(test)
    ]
    reach = {run: functions_called(run, module.__file__) for run in tests}
    took = {}
    for run in tests:
        start = time.process_time()
        if failure(run):  # it would kill every mutant
            raise RuntimeError(f"{tests_name} fails the second time, without a change")
        took[run] = time.process_time() - start
    limits = {t: FLOOR + TIMES * took[t] for t in sorted(tests, key=took.__getitem__)}
    dead, survivors, excused, doubted = 0, [], set(), {}
    for mutant in mutants(module_name, Path(module.__file__).read_text()):
        key = (module_name, mutant.function, mutant.change)
        chosen = {
            t: limits[t]
            for t in limits
            if not mutant.function or mutant.function in reach[t]
        }
        try:
            with in_place(module, mutant):
                by = killer(chosen)
                if by and key in equivalent:  # a proof says that no test can tell
                    doubted[key] = by
                    by = killer(chosen)
        except RuntimeError as error:
            raise RuntimeError(f"{' | '.join(key)}: {error}") from None
        if by:
            dead += 1
        elif key in equivalent:
            excused.add(key)
        else:
            survivors.append(mutant)
    for key in doubted.keys() - excused:
        print(f"{' | '.join(key)} is told by {doubted[key]}", file=sys.stderr)
    return dead, survivors, excused


def known_equivalent() -> dict[tuple, str]:
    """Read the mutants that are proved to compute the same, with the reasons."""
    rows = tomllib.loads(EQUIVALENT.read_text()).get("mutant", [])
    return {
        (f"flowbook.{r['module']}", r["function"], r["change"]): r["why"] for r in rows
    }


@dataclass(frozen=True)
class Verdict:
    """What became of a module's mutants, in words that travel between processes."""

    dead: int
    survivors: tuple[str, ...]
    excused: frozenset[tuple]
    seconds: float  # of CPU time


def verdict(name: str) -> Verdict:
    """Examine the module of this name, in the main thread: there its signals arrive."""
    torch.set_num_threads(1)
    torch.manual_seed(0)  # whatever this process examined before
    warnings.simplefilter("ignore")
    start = time.process_time()
    dead, survivors, excused = examine(
        f"flowbook.{name}", f"tests.flowbook.test_{name}", known_equivalent()
    )
    lived = tuple(f"{m.function or name}: {m.change}" for m in survivors)
    return Verdict(dead, lived, frozenset(excused), time.process_time() - start)


class Crashed(Exception):
    """A process ended in the middle of its work, or raised what is said here."""


def shared(
    work: Callable[[str], Any], names: list[str], processes: int
) -> Iterator[tuple[str, Any]]:
    """Yield each name with `work(name)`, or with what befell it, in the order given.

    Those that come first begin first. `work` runs in the main thread of one of so many
    processes; when one of them is lost, another takes its place.
    """
    mine, pools = threading.local(), []

    def start() -> None:
        mine.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        pools.append(mine.pool)

    def one(name: str) -> Any:
        try:
            return mine.pool.submit(work, name).result()
        except BrokenProcessPool:
            start()
            return Crashed("the process that worked on it was killed, or crashed")
        except Exception as error:
            return Crashed("".join(traceback.format_exception(error)))

    with ThreadPoolExecutor(processes, initializer=start) as threads:
        yield from zip(names, threads.map(one, names), strict=True)
    for pool in pools:
        pool.shutdown()


def modules() -> list[str]:
    """The modules that have tests, those with the longest sources and tests first."""
    package, here = ROOT / "flowbook", Path(__file__).parent / "flowbook"
    sizes = {
        path.stem: path.stat().st_size * tests.stat().st_size
        for path in package.glob("*.py")
        if (tests := here / f"test_{path.stem}.py").exists()
    }
    return sorted(sizes, key=lambda name: (-sizes[name], name))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", help="all those with tests, if none")
    names = parser.parse_args().modules or modules()
    stale = {k for k in known_equivalent() if k[0].rpartition(".")[2] in names}
    killed = survived = failed = 0
    for name, found in shared(verdict, names, min(WORKERS, len(names))):
        if isinstance(found, Crashed):
            failed += 1
            print(f"{name}: no verdict: {found}", flush=True)
            continue
        stale -= found.excused
        killed, survived = killed + found.dead, survived + len(found.survivors)
        print(
            f"{name}: {found.dead} killed, {len(found.survivors)} survived, "
            f"{len(found.excused)} proved equivalent, {found.seconds:.1f} s of CPU",
            *(f"survived: {line}" for line in found.survivors),
            sep="\n  ",
            flush=True,
        )
    if not failed:
        for key in sorted(stale):
            print(f"  in {EQUIVALENT.name}, but dead or gone: {' | '.join(key)}")
    print(f"mutants: {killed} killed, {survived} survived, {failed} without a verdict")
    return 1 if failed or survived or stale or not killed else 0


if __name__ == "__main__":
    sys.exit(main())
