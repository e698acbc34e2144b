"""Files that run inside verl's interpreter, which may be that of another environment.

The rule of this folder: a module imports the standard library, torch, transformers, ray, verl, and its neighbours as
flat modules (`from saerl_verifier import is_correct`); never `saerl_core`, whose dependencies verl's environment need
not have. The launcher puts this folder on PYTHONPATH. On SAERL's side the same files are imported as a package, which
works for those that have no neighbours (`saerl_verifier`, `saerl_math`, `saerl_decoding`), and for `saerl_judge` and
`saerl_sampling`, which look for theirs in both ways.
"""
