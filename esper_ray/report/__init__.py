"""Reports of runs and searches: one HTML page with charts, written to a file or served while the run goes on."""

from esper_ray.report.plots import write_plots
from esper_ray.report.serve import ReportServer
from esper_ray.report.write import load_page, render, write_report

__all__ = ["ReportServer", "load_page", "render", "write_plots", "write_report"]
