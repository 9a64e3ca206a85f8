"""Metrics of whole scans."""

from .scan_dice import ScanDice, scan_dice

__all__ = ["ScanDice", "scan_dice"]
