"""The command."""

import contextlib
import io
import json
import os
import runpy
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowbook import cli
from flowbook.cli import (
    load_data,
    main,
    make_model,
    make_path,
    parse,
    write_results,
)
from flowbook.images import train_unet
from flowbook.networks import MLP
from flowbook.paths import CosinePath, OTPath, VEPath, VPPath

from ..folders import folder
from ..given import seeded


def test_data_by_name():
    """Catches labels dropped, moons that differ from process to process."""
    x, y = load_data("moons")
    assert x.shape == (16384, 2) and y is None
    assert torch.equal(x, load_data("moons")[0])
    g = seeded(0)
    assert torch.equal(x, cli.sample_moons(16384, generator=g))
    x, y = load_data("digits")
    assert x.shape == (1797, 1, 8, 8) and y.shape == (1797,)


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
@pytest.mark.parametrize("root", [None, Path("here")])
def test_image_sets_are_downloaded_unless_they_are_there(name, root):
    """Catches one set for the other, a download although a folder is given."""
    from flowbook import datasets

    calls = []
    with pytest.MonkeyPatch.context() as patch:
        for known in ("fashion_mnist", "cifar10"):
            patch.setattr(
                datasets,
                f"load_{known}",
                lambda *a, known=known, **k: calls.append((known, a, k)),
            )
        load_data(name, root=root)
    options = {"root": root, "download": root is None}
    assert calls == [(name.replace("-", "_"), ("train",), options)]


def test_data_in_files():
    """Catches labels of a file dropped; a pickle inside a .npy that is loaded."""
    where, x = folder(), torch.randn(5, 3)
    np.save(where / "x.npy", x.numpy())
    found, y = load_data(str(where / "x.npy"))
    assert torch.equal(found, x) and y is None
    save_file({"x": x}, where / "x.safetensors")
    assert load_data(str(where / "x.safetensors"))[1] is None
    save_file({"x": x, "y": torch.arange(5)}, where / "xy.safetensors")
    found, y = load_data(str(where / "xy.safetensors"))
    assert torch.equal(found, x) and torch.equal(y, torch.arange(5))
    np.save(where / "pickle.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        load_data(str(where / "pickle.npy"))
    for bad in ({"images": x}, {"x": x, "z": x + 1}):
        save_file(bad, where / "bad.safetensors")
        with pytest.raises(
            ValueError, match=r"bad.safetensors: expected tensors x and"
        ):
            load_data(str(where / "bad.safetensors"))
    with pytest.raises(ValueError, match=r"data must be moons, .* got 'mnist'"):
        load_data("mnist")
    for name in ("moons", "digits", str(where / "x.npy")):
        with pytest.raises(ValueError, match=f"goes with fashion-.* with {name}"):
            load_data(name, root=where)
    np.save(where / "big.npy", x.double().numpy().astype(">f8"))
    assert torch.equal(load_data(str(where / "big.npy"))[0], x.double())


@pytest.mark.parametrize(
    "content", [b"", b"neither", b"PK\3\4neither", "cut", "words", "a folder"]
)
@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_files_that_are_something_else(content, ending):
    """Catches an error that doesn't name the file, or calls it a pickle."""
    path = folder() / f"data.{ending}"
    np.save(path.with_name("x.npy"), np.zeros((5, 3)))
    save_file({"x": torch.zeros(5, 3)}, path.with_name("x.safetensors"))
    if content == "a folder":
        path.mkdir()
    elif content == "words":
        with path.open("wb") as file:
            np.save(file, np.array(["one", "two"]))
    elif content == "cut":
        path.write_bytes(path.with_name(f"x.{ending}").read_bytes()[:-1])
    else:
        path.write_bytes(content)
    with pytest.raises((OSError, ValueError), match=rf"data\.{ending}"):
        load_data(str(path))


def test_models():
    """Catches a width or seed ignored, labels uncounted, global state touched."""
    x, y = torch.zeros(5, 2, 8, 8), torch.tensor([0, 4, 1, 1, 0])
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = make_model("mlp", x, y, width=24, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(3)
    expected = MLP((2, 8, 8), width=24)
    pairs = zip(model.parameters(), expected.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert make_model("mlp", x, y).perceptron[0].out_features == 256
    net = make_model("unet", x, y, width=8)
    assert (net.channels, net.classes) == (2, 5)
    assert net.first.out_channels == 8
    assert make_model("unet", x, None, width=8).classes is None
    with pytest.raises(ValueError, match=r"unet: expected images .* got \(5, 2\)"):
        make_model("unet", torch.zeros(5, 2), None)
    with pytest.raises(ValueError, match=r"mlp: expected points .* got \(5,\)"):
        make_model("mlp", torch.zeros(5), None)
    with pytest.raises(ValueError, match="must be mlp or unet, got 'cnn'"):
        make_model("cnn", x, None)
    for y in (torch.zeros(5), torch.tensor([0, -1, 1, 1, 0]), torch.zeros(0).long()):
        with pytest.raises(ValueError, match=f"whole numbers from 0 .*{y.dtype}"):
            make_model("unet", x, y, width=8)


def test_gaussian_path():
    """Catches a number that is not handed on, or handed on as another."""
    assert make_path("ot") == OTPath() and make_path("cosine") == CosinePath()
    assert make_path("ot", sigma_min=0.1) == OTPath(0.1)
    assert make_path("vp", beta_max=5.0) == VPPath(beta_max=5.0)
    assert make_path("vp", beta_min=0.2) == VPPath(beta_min=0.2)
    assert make_path("ve", sigma_min=0.1, sigma_max=9.0) == VEPath(0.1, 9.0)
    assert make_path("ot", sigma_min=0) == OTPath(0)
    args = parse(["--out", "x"])
    for path in cli._PATHS.values():
        assert all(hasattr(args, field.name) for field in fields(path))
    with pytest.raises(ValueError, match="one of ot, vp, ve, cosine, got 'straight'"):
        make_path("straight")


SMALL = ["--steps", "3", "--batch-size", "8", "--width", "8", "--quiet"]


def test_the_command():
    """Catches an option that is not handed on, or handed on as another."""
    where, calls = folder(), []
    line = (
        "--path vp --beta-min 0.5 --beta-max 7 "
        "--steps 3 --batch-size 8 --width 8 --quiet --lr 0.5 --ema 0.25 "
        "--clip 2 --times stratified --seed 6 --precision no --dtype float64 --compile "
        "--checkpoint-every 2"
    )

    def note(model, path, data, **options):
        calls.append((model, path, data, options))
        zeros = torch.zeros(3)
        return SimpleNamespace(model=model, ema=model, losses=zeros)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "train", note)
        main([*line.split(), "--out", str(where / "checkpoints")])
        main([*line.split(), "--data", "digits", "--out", str(where / "checkpoints")])
        conditional = ["--data", "digits", "--model", "unet"]
        falling = ["--schedule", "cosine", "--warmup", "2", "--lr", "0.5"]
        main([*SMALL, *conditional, *falling, "--out", str(where / "checkpoints")])
    ((model, path, data, options), *_, (net, _, labelled, falls)) = calls
    assert [falls["lr"](step) for step in range(3)] == [0.25, 0.5, 0.5]
    g = options.pop("generator")
    assert g.initial_seed() == 6
    assert options == {
        "steps": 3,
        "batch_size": 8,
        "lr": 0.5,
        "ema": 0.25,
        "clip": 2.0,
        "times": "stratified",
        "precision": "no",
        "compile": True,
        "checkpoint_dir": where / "checkpoints" / "checkpoints",
        "checkpoint_every": 2,
        "progress": False,
    }
    assert path == VPPath(0.5, 7.0) and data.shape == (16384, 2)
    assert next(model.parameters()).dtype == torch.float64
    assert isinstance(calls[1][2], torch.Tensor)  # an MLP takes no labels
    assert len(labelled) == 2 and net.classes == 10


def test_defaults():
    """Catches a command that trains otherwise than `train` does by default."""
    from inspect import signature

    args, defaults = parse(["--out", "x"]), signature(cli.train).parameters
    shared = ("steps", "batch_size", "lr", "ema", "clip", "times", "precision")
    for name in (*shared, "compile", "checkpoint_every"):
        assert getattr(args, name) == defaults[name].default
    assert cli._learning_rate(args) == args.lr


LISTED = [action for action in cli._parser()._actions if action.choices]
WITH = {"ve": ["--sigma-min", "0.01", "--sigma-max", "20"]}  # it can't do without
SAME = {"auto", "no", "fp16"}  # on a CPU


@pytest.mark.parametrize("option", LISTED, ids=lambda option: option.dest)
def test_every_choice_of_every_option(option):
    """Catches a choice that is listed, and can't train; one that changes nothing."""
    where, losses = folder(), {}
    images = torch.randn(16, 1, 8, 8, generator=seeded(0))
    save_file({"x": images}, where / "images.safetensors")
    line = [*SMALL, "--data", str(where / "images.safetensors")]
    for choice in option.choices:
        given = [option.option_strings[-1], choice, *WITH.get(choice, [])]
        main([*line, *given, "--out", str(where / choice)])
        losses[choice] = np.load(where / choice / "losses.npy")
        weights = load_file(where / choice / "ema.safetensors").values()
        assert all(w.isfinite().all() for w in weights), choice
        assert losses[choice].shape == (3,) and np.isfinite(losses[choice]).all()
    different = {values.tobytes() for values in losses.values()}
    assert len(different) == len(losses) - len(losses.keys() & SAME - {"no"}) > 1


@pytest.mark.slow
def test_the_recipe_of_chapter_16():
    """Catches a recipe that many devices can't run."""
    where, y = folder(), torch.arange(10) % 3
    x = torch.randn(10, 1, 8, 8, generator=seeded(1))
    save_file({"x": x, "y": y}, where / "xy.safetensors")
    recipe = "--model unet --schedule cosine --warmup 1 --clip 64 --lr 0.02 --seed 3"
    sizes = "--steps 21 --batch-size 5 --width 8 --quiet"
    line = ["--data", str(where / "xy.safetensors"), *recipe.split(), *sizes.split()]
    main([*line, "--out", str(where / "out")])
    torch.manual_seed(3)
    g = seeded(3)
    given = {"steps": 21, "batch_size": 5, "width": 8, "lr": 0.02, "progress": False}
    expected = train_unet(x, y, generator=g, **given).losses
    assert (np.load(where / "out" / "losses.npy") == expected.numpy()).all()


def test_it_runs_as_a_module():
    """Catches `python -m flowbook.cli` that ends with 0 and has done nothing."""
    where = folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "flowbook.cli")
        patch.setattr(sys, "argv", ["cli.py", *SMALL, "--out", str(where / "out")])
        runpy.run_module("flowbook.cli", run_name="__main__")
        patch.setattr(sys, "argv", ["cli.py"])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module("flowbook.cli", run_name="__main__")
    assert stopped.value.code == 2
    assert np.load(where / "out" / "losses.npy").shape == (3,)


def test_it_trains_and_goes_on():
    """Catches results of another run than the one that was trained."""
    where = folder()
    main([*SMALL, "--out", str(where)])
    main([*SMALL, "--steps", "5", "--out", str(where)])
    whole = folder()
    main([*SMALL, "--steps", "5", "--out", str(whole)])
    files = ["checkpoints", "ema.safetensors", "losses.npy"]
    assert sorted(os.listdir(where)) == files
    for one, other in zip(
        load_file(where / "ema.safetensors").values(),
        load_file(whole / "ema.safetensors").values(),
        strict=True,
    ):
        assert torch.equal(one, other)
    losses = np.load(where / "losses.npy")
    assert losses.shape == (5,)
    assert (losses == np.load(whole / "losses.npy")).all()


def test_results_say_where_they_come_from():
    """Catches weights nobody can attribute, shared ones refused."""
    where = folder()
    args = parse(["--out", str(where), "--seed", "9"])
    weight = torch.ones(3)
    model = SimpleNamespace(state_dict=lambda: {"a": weight, "b": weight})
    write_results(args, SimpleNamespace(ema=model, losses=torch.zeros(2)))
    with safe_open(where / "ema.safetensors", "pt") as file:
        said = json.loads(file.metadata()["arguments"])
    assert said["seed"] == 9 and said["out"] == str(where)


@pytest.mark.parametrize("rank", ["0", "1"])
def test_the_first_process_writes(rank):
    """Catches processes that write over each other's results."""
    where, wrote = folder(), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "train", lambda *a, **k: None)
        patch.setattr(cli, "write_results", lambda args, run: wrote.append(args.out))
        patch.setenv("RANK", rank)
        main([*SMALL, "--out", str(where)])
    assert wrote == ([where] if rank == "0" else [])


@pytest.mark.parametrize(("world", "moved"), [("1", 1), ("2", 0)])
def test_alone_it_takes_the_gpu(world, moved):
    """Catches a GPU left idle; all processes on the first GPU."""
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "train", lambda *a, **k: None)
        patch.setattr(cli, "write_results", lambda *a: None)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(MLP, "cuda", lambda self: calls.append(self))
        patch.setenv("WORLD_SIZE", world)
        main([*SMALL, "--out", str(folder())])
    assert len(calls) == moved


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--data mnist", "data must be moons"),
        ("--data gone.npy", r"No such file .*gone\.npy"),
        ("--data gone.safetensors", r"No such file .*gone\.safetensors"),
        ("--data digits --root here", "root goes with fashion-mnist or cifar10"),
        ("--data fashion-mnist --root gone", "is not in gone"),
        ("--model unet", r"unet: expected images .* got \(16384, 2\)"),
        ("--data digits --model unet --width 12", "multiple of 8, got 12"),
        ("--width 0", "width 0"),
        ("--batch-size 20000", r"lie in \[1, 16384\].* got 20000"),
        ("--steps 0", "an integer steps >= 1, got 0"),
        ("--lr nan", "lr nan"),
        ("--precision bf16 --dtype float64", "bf16 needs float32 weights"),
        ("--path ve", "path ve needs sigma_min and sigma_max, got no number"),
        ("--path ve --sigma-max 9", "ve needs sigma_min and sigma_max, got sigma_max"),
        ("--path ve --sigma-min 9 --sigma-max 1", "0 < sigma_min < sigma_max"),
        ("--path ot --sigma-max 9", "path ot takes sigma_min, got sigma_max"),
        ("--path vp --sigma-min 0.1", "vp takes beta_min and beta_max, got sigma_min"),
        ("--path cosine --beta-min 1", "path cosine takes no number, got beta_min"),
        ("--warmup 2", "warmup goes with the schedule cosine, got 2"),
        ("--schedule cosine --warmup 3", "warmup < steps, got .* warmup 3, steps 3"),
        ("--steps 60 --lr 1e30", r"the loss of step \d+ is (nan|inf)"),
    ],
)
def test_a_slip_is_said_in_a_line(line, said):
    """Catches forty lines of traceback for a misspelt name."""
    with pytest.raises(SystemExit, match=rf"^flowbook-train: error: .*{said}") as stop:
        main([*SMALL, *line.split(), "--out", str(folder())])
    assert "\n" not in stop.value.code


def test_a_missing_package_is_said_in_a_line():
    """Catches a traceback for digits without scikit-learn, which has them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sklearn", None)
        with pytest.raises(SystemExit, match=r"^flowbook-train: .* scikit-l") as stop:
            main([*SMALL, "--data", "digits", "--out", str(folder())])
    assert "\n" not in stop.value.code


def test_a_slip_in_the_folder_is_said_first():
    """Catches a training that ends with nowhere to go."""
    where = folder()
    (where / "file").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "train", lambda *a, **k: pytest.fail("it was trained"))
        for out in (where / "file", where / "file" / "deeper"):
            with pytest.raises(SystemExit, match=r"error: .*file"):
                main([*SMALL, "--out", str(out)])
        patch.setattr(os, "access", lambda *_: False)  # nothing is closed to root
        with pytest.raises(SystemExit, match=f"folder {where} is not writable"):
            main([*SMALL, "--out", str(where)])


@pytest.mark.parametrize("rank", ["0", "1"])
def test_labels_that_an_mlp_leaves_out(rank):
    """Catches labels lost without a word; the word once for each process."""
    where, calls, shown = folder(), [], io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(shown):
        patch.setattr(cli, "train", lambda *a, **k: calls.append(a[2]))
        patch.setattr(cli, "write_results", lambda *a: None)
        patch.setenv("RANK", rank)
        main(["--data", "digits", "--out", str(where)])
        main(["--data", "moons", "--out", str(where)])
        main(["--data", "digits", "--quiet", "--out", str(where)])
    words = "flowbook-train: an mlp takes no labels; left out\n"
    assert shown.getvalue() == (words if rank == "0" else "")
    assert all(isinstance(data, torch.Tensor) for data in calls)


def test_labels_of_bytes():
    """Catches labels refused that another program wrote as uint8."""
    where, calls = folder(), []
    x, y = torch.zeros(5, 1, 8, 8), torch.tensor([0, 2, 1, 1, 0], dtype=torch.uint8)
    save_file({"x": x, "y": y}, where / "xy.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "train", lambda *a, **k: calls.append(a))
        patch.setattr(cli, "write_results", lambda *a: None)
        line = ["--data", str(where / "xy.safetensors"), "--model", "unet"]
        main([*SMALL, *line, "--out", str(where)])
    ((net, _, (_, labels)),) = calls
    assert net.classes == 3 and torch.equal(labels, y.long())


def test_help_says_what_every_option_does():
    """Catches an option without a word, a default that one has to look up."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit) as stopped:
        parse(["--help"])
    said = " ".join(shown.getvalue().split())
    assert stopped.value.code == 0
    defaults = vars(parse(["--out", "x"]))
    assert all(f"(default: {v})" in said for n, v in defaults.items() if n != "out")
    assert said.count("(default: ") == len(defaults) - 1
    assert "ema.safetensors" in said and "goes on from the last checkpoint" in said


@pytest.mark.parametrize(
    "wrong",
    [
        *("", "--out x --model cnn", "--out x --path straight", "--out x --stepz 3"),
        *("--out x --step 3", "--out x --steps 3.5", "--out x moons"),
    ],
)
def test_refuses_arguments(wrong):
    """Catches a misspelt option that is passed over."""
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown), pytest.raises(SystemExit) as stopped:
        parse(wrong.split())
    assert stopped.value.code == 2 and "flowbook-train" in shown.getvalue()
