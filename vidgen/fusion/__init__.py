"""Fusing the layers of networks that others wrote: graphs from `tracing`, chains from `matching` and `masks`."""

from vidgen.fusion.network import fuse as fuse
from vidgen.fusion.report import FusionReport as FusionReport
from vidgen.fusion.report import fusion_report as fusion_report
