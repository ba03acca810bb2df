__version__ = "0.1.0"

# A book you can import: each name is derived in the chapter that exports its module.
# The names are lazy (PEP 562): `import flowbook` loads no chapter, and not even torch,
# until one of them is used. A type checker reads the imports below; `_NAMES` says the
# same to Python, and a test holds the two together.

from typing import TYPE_CHECKING

_NAMES = {
    "bits": ("bits_per_dim", "dequantize"),
    "checkpoints": ("latest_checkpoint", "load_checkpoint", "save_checkpoint"),
    "checks": ("check", "reject"),
    "comparison": ("noise_loss", "score_loss"),
    "conversions": (
        "data_to_noise",
        "data_to_score",
        "data_to_velocity",
        "noise_to_data",
        "noise_to_score",
        "noise_to_velocity",
        "score_to_data",
        "score_to_noise",
        "score_to_velocity",
        "velocity_to_data",
        "velocity_to_noise",
        "velocity_to_score",
    ),
    "datasets": ("load_cifar10", "load_digits", "load_fashion_mnist"),
    "likelihood": ("Exact", "Hutchinson", "divergence", "log_prob"),
    "losses": ("cfm_loss", "fm_loss", "loss_floor"),
    "marginal": ("EmpiricalMarginal", "MixtureMarginal"),
    "metrics": (
        "calibrated",
        "distance_null",
        "energy_distance",
        "energy_distance_null",
        "frechet_distance",
        "sliced_wasserstein",
    ),
    "networks": ("MLP",),
    "notation": ("rescale_clock", "reverse_clock"),
    "ode": ("RK4", "Dopri5", "Euler", "Heun", "Midpoint", "Solution", "solve"),
    "paths": ("GaussianPath", "PathSample"),
    "sampling": ("sample", "time_grid"),
    "schedules": ("CosinePath", "CustomPath", "OTPath", "VEPath", "VPPath"),
    "toy": ("GaussianMixture", "sample_moons"),
    "training": ("TrainingRun", "train"),
    "unet": ("UNet",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = list(_MODULE_OF)

if TYPE_CHECKING:
    from .bits import bits_per_dim as bits_per_dim
    from .bits import dequantize as dequantize
    from .checkpoints import latest_checkpoint as latest_checkpoint
    from .checkpoints import load_checkpoint as load_checkpoint
    from .checkpoints import save_checkpoint as save_checkpoint
    from .checks import check as check
    from .checks import reject as reject
    from .comparison import noise_loss as noise_loss
    from .comparison import score_loss as score_loss
    from .conversions import data_to_noise as data_to_noise
    from .conversions import data_to_score as data_to_score
    from .conversions import data_to_velocity as data_to_velocity
    from .conversions import noise_to_data as noise_to_data
    from .conversions import noise_to_score as noise_to_score
    from .conversions import noise_to_velocity as noise_to_velocity
    from .conversions import score_to_data as score_to_data
    from .conversions import score_to_noise as score_to_noise
    from .conversions import score_to_velocity as score_to_velocity
    from .conversions import velocity_to_data as velocity_to_data
    from .conversions import velocity_to_noise as velocity_to_noise
    from .conversions import velocity_to_score as velocity_to_score
    from .datasets import load_cifar10 as load_cifar10
    from .datasets import load_digits as load_digits
    from .datasets import load_fashion_mnist as load_fashion_mnist
    from .likelihood import Exact as Exact
    from .likelihood import Hutchinson as Hutchinson
    from .likelihood import divergence as divergence
    from .likelihood import log_prob as log_prob
    from .losses import cfm_loss as cfm_loss
    from .losses import fm_loss as fm_loss
    from .losses import loss_floor as loss_floor
    from .marginal import EmpiricalMarginal as EmpiricalMarginal
    from .marginal import MixtureMarginal as MixtureMarginal
    from .metrics import calibrated as calibrated
    from .metrics import distance_null as distance_null
    from .metrics import energy_distance as energy_distance
    from .metrics import energy_distance_null as energy_distance_null
    from .metrics import frechet_distance as frechet_distance
    from .metrics import sliced_wasserstein as sliced_wasserstein
    from .networks import MLP as MLP
    from .notation import rescale_clock as rescale_clock
    from .notation import reverse_clock as reverse_clock
    from .ode import RK4 as RK4
    from .ode import Dopri5 as Dopri5
    from .ode import Euler as Euler
    from .ode import Heun as Heun
    from .ode import Midpoint as Midpoint
    from .ode import Solution as Solution
    from .ode import solve as solve
    from .paths import GaussianPath as GaussianPath
    from .paths import PathSample as PathSample
    from .sampling import sample as sample
    from .sampling import time_grid as time_grid
    from .schedules import CosinePath as CosinePath
    from .schedules import CustomPath as CustomPath
    from .schedules import OTPath as OTPath
    from .schedules import VEPath as VEPath
    from .schedules import VPPath as VPPath
    from .toy import GaussianMixture as GaussianMixture
    from .toy import sample_moons as sample_moons
    from .training import TrainingRun as TrainingRun
    from .training import train as train
    from .unet import UNet as UNet
else:

    def __getattr__(name):
        import sys
        from importlib import import_module

        if name not in _MODULE_OF:
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r}",
                name=name,
                obj=sys.modules[__name__],  # so that Python can suggest a name
            )
        value = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
        globals()[name] = value
        return value

    def __dir__():
        return sorted({*globals(), *_MODULE_OF})
