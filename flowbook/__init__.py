__version__ = "0.2.0"

# A book you can import: each name is derived in the chapter that exports its module.
# The names are lazy (PEP 562): `import flowbook` loads no chapter, and not even torch,
# until one of them is used. A type checker reads the imports below; `_NAMES` says the
# same to Python, and a test holds the two together.

from typing import TYPE_CHECKING

_NAMES = {
    "conversions": ("convert",),
    "likelihood": ("Exact", "Hutchinson", "log_prob"),
    "losses": ("cfm_loss",),
    "networks": ("MLP",),
    "solvers": ("RK4", "Dopri5", "Euler", "Heun", "Midpoint", "solve"),
    "sampling": ("sample",),
    "paths": ("CosinePath", "CustomPath", "OTPath", "VEPath", "VPPath"),
    "training": ("train",),
    "unet": ("UNet",),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = list(_MODULE_OF)

if TYPE_CHECKING:
    from .conversions import convert as convert
    from .likelihood import Exact as Exact
    from .likelihood import Hutchinson as Hutchinson
    from .likelihood import log_prob as log_prob
    from .losses import cfm_loss as cfm_loss
    from .networks import MLP as MLP
    from .solvers import RK4 as RK4
    from .solvers import Dopri5 as Dopri5
    from .solvers import Euler as Euler
    from .solvers import Heun as Heun
    from .solvers import Midpoint as Midpoint
    from .solvers import solve as solve
    from .sampling import sample as sample
    from .paths import CosinePath as CosinePath
    from .paths import CustomPath as CustomPath
    from .paths import OTPath as OTPath
    from .paths import VEPath as VEPath
    from .paths import VPPath as VPPath
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
