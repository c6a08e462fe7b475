"""Checks of the Open Inference Protocol V2 for any server, run by `edgeline conformance URL`; see docs/conformance.md."""
