"""Pictures of routes and of what depends on them: matplotlib figures that read well in greyscale and print."""

from .of_routes import plot_coactivation, plot_flow, plot_module_use, plot_routes
from .of_tables import plot_audit, plot_drift

__all__ = ["plot_audit", "plot_coactivation", "plot_drift", "plot_flow", "plot_module_use", "plot_routes"]
